"""Random numbers that a network draws itself, replaced by numbers of the latent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.overrides import TorchFunctionMode

from instil.base.draws import Draws
from instil.base.errors import InstilError

Law = Literal["normal", "uniform", "dropout"]


@dataclass(frozen=True)
class Noise:
    """One tensor of random numbers that a network draws per call.

    Attributes:
        shape: Its shape without the batch axis.
        law: Standard normal, uniform on [0, 1], or uniform numbers that decide what is dropped.
    """

    shape: tuple[int, ...]
    law: Law

    def draw(self, draws: Draws, stream: str, dtype: torch.dtype) -> Tensor:
        """(B, *shape) numbers of this law."""
        if self.law == "normal":
            return draws.normal(stream, self.shape, dtype)
        return draws.uniform(stream, self.shape).to(dtype)


def truncated_normal(draws: Draws, stream: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) standard normal numbers, conditioned to lie in [-2, 2]; float64."""
    inside = math.erf(math.sqrt(2))
    return math.sqrt(2) * ((2 * draws.uniform(stream, shape) - 1) * inside).erfinv()


def _given(given: Tensor, *_: Any, **__: Any) -> Tensor:
    return given


def _normal(given: Tensor, mean: Any = 0.0, std: Any = 1.0, *_: Any, **__: Any) -> Tensor:
    return mean + std * given


def _fill_normal(given: Tensor, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return x.copy_(mean + std * given)


def _fill_uniform(given: Tensor, x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return x.copy_(low + (high - low) * given)


def _drop(given: Tensor, x: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
    return x * (given >= p) / (1 - p)


# The functions that draw: the law of their numbers, and what makes a result of given ones.
DRAWING: dict[Any, tuple[Law, Callable[..., Tensor]]] = {
    torch.randn: ("normal", _given),
    torch.randn_like: ("normal", _given),
    torch.normal: ("normal", _normal),
    Tensor.normal_: ("normal", _fill_normal),
    torch.rand: ("uniform", _given),
    torch.rand_like: ("uniform", _given),
    Tensor.uniform_: ("uniform", _fill_uniform),
    dropout: ("dropout", _drop),
}


class OnDevice(TorchFunctionMode):
    """Inside it, what code puts on a GPU lands on `device` instead."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0].to(self.device)
        return func(*map(self._here, args), **{k: self._here(v) for k, v in (kwargs or {}).items()})

    def _here(self, value: Any) -> Any:
        gpu = isinstance(value, str | torch.device) and str(value).startswith("cuda")
        return self.device if gpu else value


class Replay(OnDevice):
    """Inside it, a network is also given the random numbers that it draws.

    A functional dropout that follows the training mode stays off, as the module does.

    Args:
        noises: The draws of one call; None records them.
        given: Their numbers, (B, *shape) each.
        batch: Number of samples.
        device: Where the network is.
    """

    def __init__(
        self,
        noises: Sequence[Noise] | None,
        given: Sequence[Tensor],
        batch: int,
        device: torch.device,
    ) -> None:
        super().__init__(device)
        self.expected, self.given, self.batch = noises, given, batch
        self.drawn: list[Noise] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dropped = func is dropout and kwargs.get("training", args[2] if len(args) > 2 else True)
        if func not in DRAWING or (func is dropout and not dropped):
            return super().__torch_function__(func, types, args, kwargs)
        law, result_of = DRAWING[func]
        result = super().__torch_function__(func, types, args, kwargs)
        noise, number = Noise(tuple(result.shape[1:]), law), len(self.drawn)
        fits = self.expected is None or noise in self.expected[number : number + 1]
        if dropped and not fits:
            return args[0]
        if not fits or result.shape[:1] != (self.batch,):
            raise InstilError(
                f"it draws random numbers of the shape {tuple(result.shape)} for {self.batch} "
                "images, which are not the same for each image and call; make them an argument"
            )
        self.drawn.append(noise)
        if self.expected is None:
            return result
        return result_of(self.given[number].to(result), *args, **kwargs)
