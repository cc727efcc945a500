"""StyleGAN2-ADA's generator in plain PyTorch, its layer noises part of the latent.

    z, label -> mapping -> w           one style vector per sample
    const -> b4 -> b8 -> … -> image    each layer is modulated by w and gets a noise image

Every weight is stored with unit variance and scaled where it is used, so that one learning rate
suits all layers; the mapping's are scaled by a further factor. Modules, parameters and buffers are
called what NVIDIA's checkpoints call them, so that the tensors of one load strictly.

Source:
    Karras et al. 2020, arXiv 1912.04958 (StyleGAN2). Karras et al. 2020, arXiv 2006.06676
    (StyleGAN2-ADA). Karras et al. 2017, arXiv 1710.10196, section 4.1: weights scaled at run time.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from instil.base.config import Config, validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import UNCONDITIONAL, Condition
from students.gan.modulation import activate, convolve, modulated_conv2d, normalise, upfirdn2d
from students.gan.original import stylegan2_arguments
from students.pretrained import Pretrained
from students.student import Latent, Student, one_hot

Architecture = Literal["skip", "resnet", "orig"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
Count = Annotated[int, Field(ge=1, le=100_000)]


class Arguments(Config):
    """The numbers that a `StyleGAN2` is made with, which a file may give as anything."""

    resolution: Count
    channels: Count
    classes: Annotated[int, Field(ge=0, le=100_000)]
    z_dim: Count
    w_dim: Count
    mapping_layers: Annotated[int, Field(ge=1, le=64)]
    mapping_rate: PositiveFloat
    average_decay: Annotated[float, Field(ge=0, le=1)]
    channel_base: Annotated[int, Field(ge=1, le=1 << 24)]
    channel_max: Count
    clamp: PositiveFloat | None
    noise: bool


class StyleGAN2(Student, Pretrained):
    """x = Synthesis(Mapping(z, label), noise_1, …, noise_n), all of them standard normal.

    In training mode `w_avg` follows the mean of w, as when the GAN was trained. A latent of z alone
    takes the constant noises of the checkpoint: the same image for the same z, always.

    Args:
        resolution: Side of an image, a power of two, at least 4.
        channels: Channels of an image.
        classes: Number of class labels; 0 if unconditional.
        z_dim: Length of z.
        w_dim: Length of w.
        mapping_layers: Number of layers of the mapping.
        mapping_rate: Factor on the mapping's weights and biases, and so on its learning rate.
        average_decay: Decay of the running mean `w_avg` per batch.
        channel_base: Product of resolution and channels: a layer at resolution r has
            `channel_base // r` channels.
        channel_max: Upper bound on the channels of a layer.
        architecture: How the resolutions meet: `skip` sums their images, `resnet` has residual
            blocks, `orig` neither.
        clamp: Largest magnitude of an activation; None leaves them alone.
        noise: Whether the layers get noise.

    Raises:
        InstilError: The resolution is no power of two, or the architecture is unknown.
    """

    nfe = 1

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        classes: int = 0,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        mapping_rate: float = 0.01,
        average_decay: float = 0.995,
        channel_base: int = 32768,
        channel_max: int = 512,
        architecture: Architecture = "skip",
        clamp: float | None = None,
        noise: bool = True,
    ) -> None:
        super().__init__()
        given = locals()
        validate(Arguments, {name: given[name] for name in Arguments.model_fields})
        if resolution < 4 or resolution & (resolution - 1):
            raise InstilError(f"resolution: {resolution} is no power of two from 4 on")
        if architecture not in ARCHITECTURES:
            names = ", ".join(ARCHITECTURES)
            raise InstilError(f"architecture: {architecture!r} is not one of {names}")
        self.shape, self.classes, self.z_dim = (channels, resolution, resolution), classes, z_dim
        self.mapping = _Mapping(z_dim, classes, w_dim, mapping_layers, mapping_rate, average_decay)
        sides = [2**power for power in range(2, resolution.bit_length())]
        widths = [min(channel_base // side, channel_max) for side in sides]
        self.synthesis = nn.ModuleDict(
            {
                f"b{side}": _Block(
                    before,
                    width,
                    side,
                    channels if architecture == "skip" or side == resolution else 0,
                    w_dim,
                    residual=architecture == "resnet",
                    clamp=clamp,
                    noise=noise,
                )
                for side, before, width in zip(sides, [0, *widths[:-1]], widths, strict=True)
            }
        )

    def prior(self, draws: Draws) -> Latent:
        dtype = self.mapping.w_avg.dtype
        noises = (
            draws.normal(f"noise-{number}", (1, *constant.shape), dtype)
            for number, constant in enumerate(self._constants())
        )
        return (draws.normal("latent", (self.z_dim,), dtype), *noises)

    def forward(
        self, latent: Latent, condition: Condition = UNCONDITIONAL, psi: float = 1.0
    ) -> Tensor:
        """Map latents to images.

        Args:
            latent: z (B, z_dim), then per layer a noise (B, 1, r, r) or none at all.
            condition: `label` (B,) int64 if there are classes.
            psi: Truncation: w moves to `w_avg`, all the way at 0. 1 changes nothing.

        Returns:
            (B, channels, resolution, resolution) in about [-1, 1], not clamped.

        Raises:
            ValueError: The number of noises does not fit, or a label is missing or not expected.
        """
        z, *given = latent
        w = self.mapping(z, one_hot(condition, self.classes, z))
        if psi != 1:
            w = self.mapping.w_avg + psi * (w - self.mapping.w_avg)
        constants = list(self._constants())
        if given and len(given) != len(constants):
            raise ValueError(
                f"latent: expected z and {len(constants)} noises, or z alone, got {len(given)}"
            )
        noises = iter(given or constants)
        x: Any = None
        image: Any = None
        for block in self.synthesis.values():
            x, image = block(x, image, w, noises)
        return image.to(z.dtype)

    def _constants(self) -> Iterator[Tensor]:
        """Constant noises (r, r) of the layers, in their order."""
        layers = (layer for layer in self.modules() if isinstance(layer, _Layer))
        return (layer.noise_const for layer in layers if layer.noise_strength is not None)

    @classmethod
    def from_original(cls, arguments: Mapping[str, Any]) -> Self:
        """Make one with random weights from the arguments of the original's constructor.

        Raises:
            InstilError: As in `stylegan2_arguments`.
        """
        return cls(**stylegan2_arguments(arguments))


class _Linear(nn.Module):
    """A linear layer whose weight and bias are scaled by `rate` where they are used."""

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.rate / math.sqrt(self.weight.shape[1])
        return functional.linear(x, self.weight * scale, self.bias * self.rate)


class _Mapping(nn.Module):
    """z and a label to w; keeps the running mean of w."""

    def __init__(
        self, z_dim: int, classes: int, w_dim: int, layers: int, rate: float, decay: float
    ) -> None:
        super().__init__()
        self.decay = decay
        self.embed = _Linear(classes, w_dim) if classes else None
        widths = [z_dim + (w_dim if classes else 0)] + [w_dim] * (layers - 1)
        self.names = [f"fc{number}" for number in range(layers)]
        for name, inputs in zip(self.names, widths, strict=True):
            self.add_module(name, _Linear(inputs, w_dim, rate))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """Map (B, z_dim) and one-hot (B, classes) to (B, w_dim)."""
        w = normalise(z)
        if self.embed is not None:
            w = torch.cat([w, normalise(self.embed(label))], dim=1)
        for name in self.names:
            w = activate(self.get_submodule(name)(w))
        if self.training:
            self.w_avg.lerp_(w.detach().mean(0).to(self.w_avg), 1 - self.decay)
        return w


class _Modulated(nn.Module):
    """Base of the layers: unit-variance weights and the map from w to styles."""

    def __init__(self, inputs: int, outputs: int, kernel: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.affine = _Linear(w_dim, inputs, bias=1.0)


class _Layer(_Modulated):
    """A modulated convolution, noise, bias and activation; doubles the sides if `up`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        w_dim: int,
        up: bool,
        clamp: float | None,
        noise: bool,
    ) -> None:
        super().__init__(inputs, outputs, 3, w_dim)
        self.up, self.clamp = up, clamp
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        if noise:
            self.register_buffer("noise_const", torch.randn(side, side))
        self.register_buffer("resample_filter", _binomial())

    def forward(self, x: Tensor, w: Tensor, noises: Iterator[Tensor], gain: float = 1.0) -> Tensor:
        """Map features (B, C, H, W) to features; takes the next noise."""
        taps = self.resample_filter if self.up else None
        x = modulated_conv2d(x, self.weight, self.affine(w), taps=taps)
        if self.noise_strength is not None:
            x = x + self.noise_strength * next(noises)
        return activate(x + self.bias[:, None, None], gain, self.clamp)


class _ToRGB(_Modulated):
    """A modulated 1x1 convolution to an image, without demodulation."""

    def __init__(self, inputs: int, channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__(inputs, channels, 1, w_dim)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        x = modulated_conv2d(x, self.weight, styles, demodulate=False)
        x = x + self.bias[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class _Skip(nn.Module):
    """The linear path of a residual block: a 1x1 convolution that doubles the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.register_buffer("resample_filter", _binomial())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight.shape[1])
        return convolve(x, weight, self.resample_filter)


class _Block(nn.Module):
    """All layers of one resolution.

    The first block, of 0 `inputs`, starts at a constant. One of 0 `channels` adds to no image.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        channels: int,
        w_dim: int,
        residual: bool,
        clamp: float | None,
        noise: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("resample_filter", _binomial())
        self.const: Any = None if inputs else nn.Parameter(torch.randn(outputs, side, side))
        made: dict[str, Any] = {"side": side, "w_dim": w_dim, "clamp": clamp, "noise": noise}
        self.conv0: Any = _Layer(inputs, outputs, up=True, **made) if inputs else None
        self.conv1 = _Layer(outputs, outputs, up=False, **made)
        self.torgb = _ToRGB(outputs, channels, w_dim, clamp) if channels else None
        self.skip = _Skip(inputs, outputs) if inputs and residual else None

    def forward(
        self, x: Tensor | None, image: Tensor | None, w: Tensor, noises: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Map features and image of the resolution below to those of this one."""
        gain = math.sqrt(0.5) if self.skip else 1.0  # so that a sum of two keeps the variance
        start = self.const is not None
        below = self.const.expand(len(w), -1, -1, -1) if start else self.conv0(x, w, noises)
        y = self.conv1(below, w, noises, gain)
        if self.skip is not None:
            y = y + gain * self.skip(x)
        if image is not None:
            image = upfirdn2d(image, 4 * self.resample_filter, up=2, crop=1)
        if self.torgb is not None:
            rgb = self.torgb(y, w)
            image = rgb if image is None else image + rgb
        return y, image


def _binomial() -> Tensor:
    """The low-pass filter [1, 3, 3, 1] along both axes, sum 1."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(line, line)
