"""The DDPM++ and NCSN++ networks of EDM checkpoints, which diffusers' `UNet2DModel` cannot express.

Modules are named as EDM's checkpoints name them, so that weights need no mapping.

Source:
    Song et al. 2021, arXiv 2011.13456, appendix H (both architectures); Karras et al. 2022,
    arXiv 2206.00364, appendix F.2 (their reduction to one network of options).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, one_hot, silu

EPS = 1e-6  # of every normalisation


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=EPS)


class Resample(nn.Module):
    """Halve or double the resolution under a separable filter.

    Args:
        taps: The filter along one axis, of even length; its sum is divided out.
        direction: Which.
    """

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], direction: Literal["down", "up"]) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer(
            "resample_filter", (torch.outer(line, line) / line.sum() ** 2)[None, None]
        )
        self.direction = direction

    def forward(self, x: Tensor, margin: int | None = None) -> Tensor:
        """Filter (B, C, H, W); the zeros around it default to those that keep it centred."""
        margin = (self.resample_filter.shape[-1] - 1) // 2 if margin is None else margin
        channels = x.shape[1]
        kernel = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.direction == "down":
            return conv2d(x, kernel, stride=2, padding=margin, groups=channels)
        return conv_transpose2d(x, 4 * kernel, stride=2, padding=margin, groups=channels)


class ResampleConv(Resample):
    """Resample, then convolve; the pyramid of the encoder convolves first.

    Args:
        channels: Into it and out of it.
        size: Of the convolution's kernel, odd.
        taps: As in `Resample`.
        direction: Likewise.
        convolve_first: The order.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        size: int,
        taps: Sequence[float],
        direction: Literal["down", "up"],
        convolve_first: bool = False,
    ) -> None:
        super().__init__(taps, direction)
        model = nn.Conv2d(*channels, size)
        self.weight, self.bias = model.weight, model.bias
        self.convolve_first = convolve_first

    def forward(self, x: Tensor, margin: int | None = None) -> Tensor:
        around = self.weight.shape[-1] // 2
        if not self.convolve_first:
            return conv2d(super().forward(x, margin), self.weight, self.bias, padding=around)
        # All zeros are put around the image at once, and the filter adds none of its own.
        around += (self.resample_filter.shape[-1] - 1) // 2
        return super().forward(conv2d(x, self.weight, self.bias, padding=around), margin=0)


class Block(nn.Module):
    """A residual block that may halve or double the resolution, then self-attention.

    Args:
        channels: Into it and out of it.
        embedding: Length of the vector it is conditioned on.
        dropout: Probability, in training mode.
        taps: As in `Resample`.
        direction: Likewise; None keeps the resolution.
        attention: Whether self-attention, of one head, follows.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        embedding: int,
        dropout: float,
        taps: Sequence[float],
        direction: Literal["down", "up"] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        before, after = channels
        self.norm0, self.norm1 = _norm(before), _norm(after)
        self.affine = nn.Linear(embedding, after)
        self.dropout = nn.Dropout(dropout)
        self.skip: nn.Module | None = None
        if direction:
            self.conv0: nn.Module = ResampleConv(channels, 3, taps, direction)
            self.skip = ResampleConv(channels, 1, taps, direction)
        else:
            self.conv0 = nn.Conv2d(before, after, 3, padding=1)
            self.skip = nn.Conv2d(before, after, 1) if before != after else None
        self.conv1 = nn.Conv2d(after, after, 3, padding=1)
        self.attention = attention
        if attention:
            self.norm2 = _norm(after)
            self.qkv = nn.Conv2d(after, 3 * after, 1)
            self.proj = nn.Conv2d(after, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, C, H, W) under (B, E) to (B, C', H', W')."""
        hidden = self.conv0(silu(self.norm0(x)))
        hidden = silu(self.norm1(hidden + self.affine(embedding)[:, :, None, None]))
        hidden = self.conv1(self.dropout(hidden))
        x = (hidden + (x if self.skip is None else self.skip(x))) / math.sqrt(2)
        return (x + self._attend(x)) / math.sqrt(2) if self.attention else x

    def _attend(self, x: Tensor) -> Tensor:
        # Each channel's query, key and value lie side by side: (B, C, 3, H W).
        mixed = self.qkv(self.norm2(x)).unflatten(1, (-1, 3)).flatten(3)
        query, key, value = (each.transpose(1, 2) for each in mixed.unbind(2))
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(found.transpose(1, 2).reshape(x.shape))


class Fourier(nn.Module):
    """Random frequencies, a buffer of the checkpoint, from zero-mean normals of std 16."""

    freqs: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(length // 2))

    def forward(self, time: Tensor) -> Tensor:
        """Phases (B, length / 2) of time (B,)."""
        return time[:, None] * (2 * math.pi * self.freqs)


class Positional(nn.Module):
    """Frequencies that fall geometrically from 1 to 1/10000, both included."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.count = length // 2

    def forward(self, time: Tensor) -> Tensor:
        """Phases (B, length / 2) of time (B,)."""
        steps = torch.linspace(0, 1, self.count, device=time.device)
        return time[:, None] * 1e-4**steps


class SongUNet(ModelMixin, ConfigMixin):
    """The U-Net of DDPM++ and NCSN++; called as diffusers' `UNet2DModel`.

    DDPM++ is positional, standard, standard, (1, 1), 1; NCSN++ is fourier, residual, standard,
    (1, 3, 3, 1), 2.

    Args:
        sample_size: Height and width, pixels.
        in_channels: Of a sample.
        out_channels: Of the output.
        num_class_embeds: Number of class labels; None for none.
        augment_labels: Length of the augmentation vector; 0 for none.
        model_channels: Width that the multipliers multiply.
        channel_mult: Width of each resolution, finest first.
        channel_mult_emb: Length of the conditioning vector.
        num_blocks: Residual blocks of each resolution.
        attn_resolutions: Heights at which the blocks have self-attention.
        dropout: Probability, in training mode.
        embedding_type: How the noise level is embedded.
        channel_mult_noise: Length of that embedding.
        encoder_type: Whether coarser levels see the image again, filtered ("skip") or as the sum of
            a pyramid of convolutions ("residual").
        decoder_type: Whether each level adds to the output ("skip") or only the last.
        resample_filter: As in `Resample`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        num_class_embeds: int | None = None,
        augment_labels: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = {"positional": Positional, "fourier": Fourier}[embedding_type](noise)
        self.map_label = nn.Linear(num_class_embeds, noise) if num_class_embeds else None
        self.map_augment = nn.Linear(augment_labels, noise, bias=False) if augment_labels else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        taps, widths = resample_filter, [model_channels * each for each in channel_mult]
        sides = [sample_size >> level for level in range(len(widths))]
        names = [f"{side}x{side}" for side in sides]

        def block(before: int, after: int, **options: Any) -> Block:
            return Block((before, after), embedding, dropout, taps, **options)

        self.enc = nn.ModuleDict(
            {f"{names[0]}_conv": nn.Conv2d(in_channels, model_channels, 3, padding=1)}
        )
        width, pyramid, skips = model_channels, in_channels, [model_channels]
        for level, name in enumerate(names):
            if level:
                self.enc[f"{name}_down"] = block(width, width, direction="down")
                skips.append(width)
                if encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Resample(taps, "down")
                    self.enc[f"{name}_aux_skip"] = nn.Conv2d(in_channels, width, 1)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = ResampleConv(
                        (pyramid, width), 3, taps, "down", convolve_first=True
                    )
                    pyramid = width
            for number in range(num_blocks):
                attention = sides[level] in attn_resolutions
                self.enc[f"{name}_block{number}"] = block(width, widths[level], attention=attention)
                width = widths[level]
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, name in reversed(list(enumerate(names))):
            coarsest = level == len(names) - 1
            if coarsest:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, direction="up")
            for number in range(num_blocks + 1):
                attention = number == num_blocks and sides[level] in attn_resolutions
                self.dec[f"{name}_block{number}"] = block(
                    width + skips.pop(), widths[level], attention=attention
                )
                width = widths[level]
            if decoder_type == "skip" and not coarsest:
                self.dec[f"{name}_aux_up"] = Resample(taps, "up")
            if decoder_type == "skip" or level == 0:
                self.dec[f"{name}_aux_norm"] = _norm(width)
                self.dec[f"{name}_aux_conv"] = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: (B, in_channels, H, W).
            time: (B,) float, as the preconditioning makes it of sigma.
            class_labels: (B,) int64; None means no class, which only networks trained with label
                dropout have seen.
            augment_labels: (B, augment_labels); None means not augmented.

        Returns:
            (B, out_channels, H, W).
        """
        embedding = self._embed(time, class_labels, augment_labels)
        x, skips = self._encode(x, embedding)
        return self._decode(x, skips, embedding)

    def _embed(self, time: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        phase = self.map_noise(time)
        embedding = torch.cat([phase.sin(), phase.cos()], dim=1)
        if self.map_label is not None:
            count = self.map_label.in_features
            chosen = embedding.new_zeros(len(time), count)
            if label is not None:
                chosen = one_hot(label, count).to(embedding.dtype)
            embedding = embedding + self.map_label(chosen * math.sqrt(count))
        if self.map_augment is not None:
            # Zeros, rather than leaving it out, keep its weights in the graph that DDP waits for.
            if augment is None:
                augment = embedding.new_zeros(len(time), self.map_augment.in_features)
            embedding = embedding + self.map_augment(augment)
        return silu(self.map_layer1(silu(self.map_layer0(embedding))))

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The coarsest features, and what the decoder takes beside its own, in order."""
        pyramid, skips = x, []
        for name, module in self.enc.items():
            match name.partition("_")[2]:
                case "conv":
                    skips.append(module(x))
                case "aux_down":
                    pyramid = module(pyramid)
                case "aux_skip":
                    skips[-1] = skips[-1] + module(pyramid)
                case "aux_residual":
                    pyramid = skips[-1] = (skips[-1] + module(pyramid)) / math.sqrt(2)
                case _:
                    skips.append(module(skips[-1], embedding))
        return skips[-1], skips

    def _decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        output, normed = x.new_zeros(()), x
        for name, module in self.dec.items():
            kind = name.partition("_")[2]
            match kind:
                case "aux_up":
                    output = module(output)
                case "aux_norm":
                    normed = silu(module(x))
                case "aux_conv":
                    output = output + module(normed)
                case _:
                    if kind.startswith("block"):
                        x = torch.cat([x, skips.pop()], dim=1)
                    x = module(x, embedding)
        return output
