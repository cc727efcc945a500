"""One family of networks: how it is called, asked, decoded, and what of it is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from instructors.denoiser import Condition

# (network, noisy (B, C, H, W), time (B,), condition) -> (B, C or 2C, H, W). Times are those of
# training, up to 1000 for every family; each converts them to what its class wants.
Forward = Callable[[Any, Tensor, Tensor, Condition], Any]
# (pipeline, prompts, negative, device) -> tensors of a condition by name. With a negative prompt,
# those of the null condition instead, each with `null_` before its name.
Encoder = Callable[[Any, list[str], str | None, Any], dict[str, Tensor]]
KL = ("AutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True)
class Family:
    """The networks of one class.

    Attributes:
        name: The class; empty for networks of other code.
        forward: The call of a network; returns its output, or an object with that as `sample`.
        library: The module that holds the class.
        encoders: The text encoding of each pipeline class that has such a network.
        text: The tensors of a condition by name, from the configuration, with their shapes for one
            prompt of as many tokens as the pipelines ask for.
        classes: The number of class labels, from the configuration; 0 for none.
        has_null_label: Whether the label after the last class is the null one.
        has_null_text: Whether a prompt may be the null condition.
        autoencoders: The classes of autoencoders whose latents are the samples; none for images.
        unit_images: Whether the autoencoder is given images in [0, 1], and makes such.
        channels: The channels of a sample, from the configuration.
        side: Height and width of a sample where the configuration names none.
        refused: Settings that change what the network computes, with the values understood.
        constants: The names of a network's parameters that training must leave alone: constants,
            and those that reach no output, for which data parallelism would wait.
    """

    name: str
    forward: Forward
    library: str = "diffusers"
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    text: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    classes: Callable[[Any], int] = lambda config: 0
    has_null_label: bool = False
    has_null_text: bool = True
    autoencoders: tuple[str, ...] = ()
    unit_images: bool = False
    channels: Callable[[Any], int] = lambda config: config.in_channels
    side: int | None = None
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    constants: Callable[[Any], tuple[str, ...]] = lambda network: ()

    @property
    def in_diffusers(self) -> bool:
        """Whether diffusers has the class, so that plain diffusers loads such networks."""
        return bool(self.name) and self.library == "diffusers"

    @property
    def latent(self) -> bool:
        """Whether samples are latents of an autoencoder."""
        return bool(self.autoencoders)

    def fault(self, config: Mapping[str, Any]) -> str | None:
        """The first setting that is not understood, as `key=value`."""
        for key, allowed in self.refused.items():
            if key in config and config[key] not in allowed:
                return f"{key}={config[key]!r}"
        return None

    def call(self, network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Evaluate a network.

        Args:
            network: One of this family.
            noisy: (B, *shape), scaled as the network wants it.
            time: (B,) float; must be a tensor, since diffusers truncates Python floats.
            condition: `label` where the network has classes, the family's tensors where not.

        Returns:
            (B, *shape) of the dtype of `noisy`; a learned variance in further channels is dropped.
        """
        output = self.forward(network, noisy, time, condition)
        output = output if isinstance(output, Tensor) else output.sample
        return output[:, : noisy.shape[1]].to(noisy.dtype)
