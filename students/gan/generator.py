"""A generator of the user's own code as a student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from instil.base.config import own, validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import UNCONDITIONAL, Condition
from students.gan.calling import call, complete, images_of
from students.gan.factory import make, save_all
from students.gan.randomness import truncated_normal
from students.pretrained import Pretrained
from students.source import Call
from students.student import Latent, Student


class GAN(Student, Pretrained):
    """x = scale(network(z)) or scale(network(z, label)).

    The latent is z and, where the network draws random numbers itself, one tensor for each of these
    draws. In training mode the network's buffers, such as the statistics of batch normalisation,
    follow as they did when it was trained.

    Args:
        factory: Name of the callable that makes the network, as `make` reads it.
        arguments: Keyword arguments of the factory.
        how: Fields of `Call`: how the network is called; those left out are found by trying.

    Attributes:
        how: The whole description of a call.
        noises: The random numbers that the network draws.
        unsaved: Names of the buffers that the network itself does not save; students do.

    Raises:
        InstilError: The network cannot be made, or cannot be called like this.
    """

    nfe = 1

    def __init__(
        self, factory: str, arguments: Mapping[str, Any] | None = None, **how: Any
    ) -> None:
        super().__init__()
        self.factory = factory
        self.network = make(factory, arguments or {}).eval()
        self.unsaved = save_all(self.network)
        known = validate(Call, how)
        self.how, self.noises, self.shape = complete(self.network, known, factory)
        self.classes, self.latent = self.how.classes or 0, self.how.latent or ()
        self.network.train()
        self._hub_mixin_config = {
            "factory": factory,
            "arguments": dict(arguments or {}),
            **self.how.model_dump(mode="json"),
        }

    def prior(self, draws: Draws) -> Latent:
        dtype, how = next(p.dtype for p in self.parameters() if p.is_floating_point()), self.how
        if how.truncation:
            z = how.truncation * truncated_normal(draws, "latent", self.latent)
        elif how.prior == "uniform":
            z = 2 * draws.uniform("latent", self.latent) - 1
        else:
            z = draws.normal("latent", self.latent, dtype)
        drawn = (n.draw(draws, f"noise-{k}", dtype) for k, n in enumerate(self.noises))
        return (z.to(dtype), *drawn)

    def forward(self, latent: Latent, condition: Condition = UNCONDITIONAL) -> Tensor:
        z, *noises = latent
        # A copy of z, since networks normalise it in place.
        with own.running(f"{self.factory}: its forward pass fails"):
            result, _ = call(self.network, self.how, z.clone(), condition, self.noises, noises)
        images = images_of(result, self.how).to(z.dtype)
        low, high = self.how.range
        return images if (low, high) == (-1.0, 1.0) else 2 * (images - low) / (high - low) - 1

    @classmethod
    def _described(
        cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
    ) -> Self:
        try:  # the network is of code that the user trusts, which may not be built without memory
            return cls(**{key: value for key, value in arguments.items() if key != "student"})
        except TypeError as error:
            raise InstilError(f"{source}: config.json does not describe a GAN ({error})") from None

    def core(self) -> nn.Module:
        return self.network

    @classmethod
    def from_pretrained(  # pyrefly: ignore[bad-override]
        cls, pretrained_model_name_or_path: str | Path, *, factory: str, **others: Any
    ) -> Self:
        """Load a folder; the factory is the caller's, since a folder may not name code to run."""
        return super().from_pretrained(pretrained_model_name_or_path, factory=factory, **others)
