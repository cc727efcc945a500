"""The contract of every diffusion model here: a denoiser D(x, sigma).

There is one process, x_sigma = x + sigma * noise, with sigma in data units. Timesteps, alphas and
preconditioning stop in the adapter that needs them.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from instil.base.shapes import expand


class Condition(Mapping[str, Tensor]):
    """The condition of a batch: named tensors with a leading batch axis, read-only.

    `Condition()` is the condition of an unconditional model; `Condition(label=…)` holds (B,) int64
    class labels; text models have tensors of their family.
    """

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def rows(self, which: slice | Tensor) -> "Condition":
        """The condition of some samples of the batch."""
        return Condition(**{name: tensor[which] for name, tensor in self.items()})

    def where(self, mask: Tensor, other: "Condition") -> "Condition":
        """The rows of this condition where `mask` (B,) is true, those of `other` elsewhere."""
        return Condition(
            **{k: torch.where(expand(mask, t), t, other[k].to(t)) for k, t in self.items()}
        )

    def to(self, device: torch.device | str) -> "Condition":
        """The condition on another device."""
        return Condition(**{name: tensor.to(device) for name, tensor in self.items()})

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Join the batches of conditions with the same names."""
        return Condition(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


UNCONDITIONAL = Condition()


def class_labels(classes: int, numbers: Tensor) -> Condition:
    """The condition with labels `numbers` (B,) modulo `classes`; empty if there are no classes."""
    return Condition(label=numbers % classes) if classes else UNCONDITIONAL


def labelled(labels: Tensor | None) -> Condition:
    """The condition with these labels (B,); empty if there are none."""
    return UNCONDITIONAL if labels is None else Condition(label=labels)


class Denoiser(nn.Module, ABC):
    """The posterior mean of a sample given a noisy one: D(x, s) = E[x0 | x0 + s * noise = x].

    Attributes:
        network: The network inside; None where there is none, or where other denoisers hold it.
        shape: One sample without the batch axis, e.g. (3, 32, 32).
        sigma_min: Smallest noise level the model was trained for.
        sigma_max: Largest noise level the model was trained for.
        sampled: Lowest and highest noise level of its sampler; None for those trained.
        classes: Number of class labels; 0 if the model takes none.
        text: Names of a condition's tensors besides the label; none for most models.
        evaluations: Network evaluations per call.
        prediction: The network's output, in a word.
        learned_variance: Whether the network has a variance in further channels, which D drops.
        exact: Whether the network is never autocast, since the cost of rounding grows with sigma.
        null_names: Names of the tensors of the null condition; none without one.
        halved: Whether the network is always autocast: its weights are kept in half precision.

    Source:
        Karras et al. 2022, arXiv 2206.00364, eq. 3.
    """

    shape: tuple[int, ...]
    sigma_min: float
    sigma_max: float
    sampled: tuple[float, float] | None = None
    classes: int = 0
    text: tuple[str, ...] = ()
    evaluations: int = 1
    prediction: str = "denoised"
    learned_variance: bool = False
    exact: bool = False
    halved: bool = False
    null_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Check the arguments, then denoise.

        Args:
            noisy: (B, *shape), data units.
            sigma: (B,), data units, within [sigma_min, sigma_max]; not checked, since that would
                make a GPU wait.
            condition: The tensors that the model takes; `label` holds (B,) int64 in [0, classes).

        Returns:
            (B, *shape), of the dtype of `noisy`, also under autocast.

        Raises:
            ValueError: A shape does not fit, or a label is missing or not expected.
        """
        if noisy.shape[1:] != self.shape or sigma.shape != noisy.shape[:1]:
            raise ValueError(
                f"noisy {tuple(noisy.shape)} and sigma {tuple(sigma.shape)}: "
                f"expected (B, {', '.join(map(str, self.shape))}) and (B,)"
            )
        label = condition.get("label")
        if self.classes and (label is None or label.shape != sigma.shape):
            got = "none" if label is None else f"shape {tuple(label.shape)}"
            raise ValueError(
                f"label: expected {len(sigma)} class numbers below {self.classes}, got {got}"
            )
        if label is not None and not self.classes:
            raise ValueError("label: given, but this model is unconditional; leave it out")
        missing = [name for name in self.text if name not in condition]
        if missing:
            raise ValueError(f"condition: {', '.join(missing)} missing; expected {self.text}")
        device = noisy.device.type
        rounded = (self.halved or torch.is_autocast_enabled(device)) and not self.exact
        with torch.autocast(device, torch.bfloat16 if self.halved else None, enabled=rounded):
            return self.denoise(noisy, sigma, condition)

    @abstractmethod
    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Denoise, with the arguments of `forward` already checked; written by each subclass."""

    def weight(self, sigma: Tensor) -> Tensor:
        """(B,) loss weight under which the raw network output has unit scale at every level.

        Source:
            Karras et al. 2022, arXiv 2206.00364, eq. 8 (lambda = 1 / c_out**2).
        """
        return sigma**-2

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest levels the network was trained at; unchanged where it was trained at all."""
        return sigma

    def nearest(self, sigma: float) -> float:
        """`round_sigma` of one level."""
        own = next(self.buffers(recurse=False), torch.empty(0))  # on the device of the levels
        return self.round_sigma(own.new_tensor([sigma], dtype=torch.float64)).item()

    def start(self, unit: Tensor, sigma: float) -> Tensor:
        """Scale unit noise to the input that plain diffusers gives the model at level sigma."""
        return unit * sigma

    def null(self, count: int) -> Condition:
        """The condition of classifier-free guidance's unconditional branch, for `count` samples.

        Raises:
            ValueError: The model was not trained with one.
        """
        if not self.null_names:
            raise ValueError(
                f"guidance: this {type(self).__name__} has no null condition; leave guidance out"
            )
        rows = {name: getattr(self, f"null_{name}") for name in self.null_names}
        return Condition(**{k: row.expand(count, *row.shape[1:]) for k, row in rows.items()})

    def set_null(self, row: Condition) -> None:
        """Make `row`, tensors with a leading axis of one, the null condition."""
        for name, tensor in row.items():
            self.register_buffer(f"null_{name}", tensor, persistent=False)
        self.null_names = tuple(row)

    @staticmethod
    def of(network: nn.Module, shape: tuple[int, ...], **settings: Any) -> "Denoiser":
        """A network of your own as a denoiser; settings are those of `adapters.own.OwnNetwork`."""
        from instructors.adapters.own import OwnNetwork  # which is made of this file

        return OwnNetwork(network, shape, **settings)

    def base(self) -> "Denoiser":
        """The bare network's denoiser, without guidance or blending: what copies are made of."""
        return self


def score(denoised: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """The score of the noisy density, (D - x) / sigma**2 (arXiv 2206.00364, eq. 3)."""
    return (denoised - noisy) / expand(sigma, noisy) ** 2


def sharing_copy(denoiser: Denoiser) -> Denoiser:
    """A copy of which every parameter and buffer is the very tensor of the original."""
    tensors = chain(denoiser.parameters(), denoiser.buffers())
    return copy.deepcopy(denoiser, {id(tensor): tensor for tensor in tensors})
