"""A generator of the user's own code as a student."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from instil.base.config import own
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import UNCONDITIONAL, Condition
from students.pretrained import Pretrained
from students.student import Latent, Student, one_hot

# What generators call the length of z and the number of labels.
LATENT = ("z_dim", "latent_dim", "latent_size", "nz")
CLASSES = ("num_classes", "n_classes", "c_dim")


class GAN(Student, Pretrained):
    """x = scale(network(z)) or scale(network(z, label)), z ~ N(0, I).

    In training mode the network's buffers, such as the statistics of batch normalisation, follow as
    they did when it was trained.

    Args:
        factory: `package.module:callable` that makes the network.
        arguments: Of the factory.
        latent: Shape of z; None looks for an attribute of the network such as `z_dim`.
        classes: Number of class labels; None looks for one such as `num_classes`, else 0.
        labels: What the network takes as its second argument: class numbers or one-hot vectors.
        range: Black and white of the network's images.

    Raises:
        InstilError: The network cannot be made, or cannot be called like this.
    """

    nfe = 1

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any] | None = None,
        latent: tuple[int, ...] | None = None,
        classes: int | None = None,
        labels: Literal["index", "one_hot"] = "index",
        range: tuple[float, float] = (-1.0, 1.0),  # noqa: A002, the recipe's word
    ) -> None:
        super().__init__()
        self.factory = factory
        self.network = make(factory, arguments or {})
        if latent is None:
            found = _attribute(self.network, LATENT)
            if found is None:
                raise InstilError(
                    f"latent: {factory} does not say the shape of z; give it, such as latent=[128]"
                )
            latent = (found,)
        self.latent = tuple(latent)
        self.classes = _attribute(self.network, CLASSES) or 0 if classes is None else classes
        self.labels, self.range = labels, (range[0], range[1])
        self.shape = self._probe()

    def prior(self, draws: Draws) -> Latent:
        return (draws.normal("latent", self.latent, next(self.parameters()).dtype),)

    def forward(self, latent: Latent, condition: Condition = UNCONDITIONAL) -> Tensor:
        (z,) = latent
        vectors = one_hot(condition, self.classes, z)  # checks the labels as well
        if not self.classes:
            images = self.network(z)
        else:
            images = self.network(z, vectors if self.labels == "one_hot" else condition["label"])
        images = images.to(z.dtype)
        low, high = self.range
        return images if self.range == (-1.0, 1.0) else 2 * (images - low) / (high - low) - 1

    @classmethod
    def _described(
        cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
    ) -> Self:
        try:  # the network is of code that the user trusts, which may not be built without memory
            return cls(**arguments)
        except TypeError as error:
            raise InstilError(f"{source}: config.json does not describe a GAN ({error})") from None

    def core(self) -> nn.Module:
        return self.network

    @classmethod
    def from_pretrained(  # pyrefly: ignore[bad-override]
        cls, pretrained_model_name_or_path: str | Path, *, factory: str, **others: Any
    ) -> Self:
        """As huggingface_hub's, but the factory is the caller's: a folder may not name code."""
        return super().from_pretrained(pretrained_model_name_or_path, factory=factory, **others)

    @torch.no_grad()
    def _probe(self) -> tuple[int, ...]:
        """The shape of one image, from two."""
        factory = self.factory
        z = torch.zeros(2, *self.latent, dtype=next(self.parameters()).dtype)
        label = torch.zeros(2, dtype=torch.int64)
        if self.labels == "one_hot" and self.classes:
            label = nn.functional.one_hot(label, self.classes).to(z.dtype)
        called = f"z {tuple(z.shape)}" + (f" and {self.classes} labels" if self.classes else "")
        training = self.training
        self.eval()
        try:
            images = self.network(z, label) if self.classes else self.network(z)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InstilError(
                f"{factory}: cannot be called with {called} ({reason}); set latent, classes, labels"
            ) from None
        finally:
            self.train(training)
        if not isinstance(images, Tensor) or images.dim() < 2 or len(images) != 2:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InstilError(f"{factory}: expected images (2, …) for {called}, got {got}")
        if not images.is_floating_point():
            raise InstilError(
                f"{factory}: makes {images.dtype} images, which have no gradient; return the "
                "floating-point values from before they are rounded"
            )
        return tuple(images.shape[1:])


def make(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import and call a factory, `package.module:callable`.

    Raises:
        InstilError: It cannot be imported or called, or what it makes is no module with parameters.
    """
    try:
        build: Callable[..., Any] = own.load(factory)
    except InstilError as error:
        raise InstilError(f"factory: {error}") from error
    try:
        network = build(**arguments)
    except (TypeError, ValueError) as error:
        raise InstilError(f"factory: {factory} does not take {dict(arguments)} ({error})") from None
    if not isinstance(network, nn.Module) or not list(network.parameters()):
        raise InstilError(
            f"factory: {factory} makes a {type(network).__name__}, expected a torch module with "
            "parameters"
        )
    return network


def _attribute(network: nn.Module, names: tuple[str, ...]) -> int | None:
    found = (getattr(network, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
