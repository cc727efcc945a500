"""The network of EDM2's checkpoints, in which every operation keeps the magnitude of its input.

Modules are named as the checkpoints name them, so that weights need no mapping.

Source:
    Karras et al. 2024, arXiv 2312.02696, appendix B ("MP": magnitude-preserving; config G).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    conv2d,
    interpolate,
    linear,
    one_hot,
    scaled_dot_product_attention,
    silu,
)

EPS = 1e-4  # of every normalisation
SILU_RMS = 0.596  # root mean square of silu(z) for z ~ N(0, 1)


def normalized(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Scale to a root mean square of one over `axes`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=dtype)
    rms = norm * math.sqrt(norm.numel() / x.numel())
    return x / (EPS + rms).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Unit variance in, unit second moment out (eq. 81)."""
    return silu(x) / SILU_RMS


def mp_sum(one: Tensor, two: Tensor, share: float) -> Tensor:
    """One and `share` of two, of unit variance if both are and are not correlated (eq. 88)."""
    return ((1 - share) * one + share * two) / math.hypot(1 - share, share)


def mp_cat(one: Tensor, two: Tensor, share: float) -> Tensor:
    """Channels of both, which weigh 1 - share and share whatever their number is (eq. 103)."""
    channels = one.shape[1], two.shape[1]
    scale = math.sqrt(sum(channels)) / math.hypot(1 - share, share)
    weights = (1 - share, share)
    one, two = (
        each * (scale * weight / math.sqrt(count))
        for each, weight, count in zip((one, two), weights, channels, strict=True)
    )
    return torch.cat([one, two], dim=1)


class MPFourier(nn.Module):
    """Cosines of random frequency and phase; both are buffers of the checkpoint (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(length))
        self.register_buffer("phases", 2 * math.pi * torch.rand(length))

    def forward(self, time: Tensor) -> Tensor:
        """Features (B, length) of time (B,)."""
        return (time[:, None] * self.freqs + self.phases).cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution, or a linear layer, whose weights count by their direction alone (eq. 47).

    Weights that are being trained are put back to unit magnitude at each call, the paper's forced
    normalisation (eq. 66): gradients are orthogonal to them, so that they would grow with
    every update, and what an update changes would shrink.

    Args:
        before: Channels into it.
        after: Channels out of it.
        size: Of the kernel, odd; 0 for a linear layer.
    """

    def __init__(self, before: int, after: int, size: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, *(size, size) if size else ()))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map (B, before, …) to (B, after, …), times `gain`."""
        axes = tuple(range(1, self.weight.dim()))
        if self.weight.requires_grad and torch.is_grad_enabled():
            # Doing it twice changes nothing, so autograd need not know: another call's graph stays.
            self.weight.data.copy_(normalized(self.weight.detach(), axes))
        weight = normalized(self.weight, axes) * (gain / math.sqrt(self.weight[0].numel()))
        if weight.dim() == 2:
            return linear(x, weight)
        return conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """A residual block that may halve or double the resolution, then self-attention.

    Args:
        channels: Into it and out of it.
        embedding: Length of the vector it is conditioned on.
        decoder: Whether it is one of the decoder's, which do not normalise what they are given.
        direction: None keeps the resolution.
        heads: Of the self-attention; 0 for none.
        dropout: Probability, in training mode.
        res_balance: Share of the residual branch.
        attn_balance: Share of the attention.
        clip_act: Largest magnitude of what it returns.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        embedding: int,
        decoder: bool,
        direction: Literal["down", "up"] | None = None,
        heads: int = 0,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        before, after = channels
        self.decoder, self.direction, self.heads = decoder, direction, heads
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(before if decoder else after, after, 3)
        self.emb_linear = MPConv(embedding, after)
        self.conv_res1 = MPConv(after, after, 3)
        self.conv_skip = MPConv(before, after, 1) if before != after else None
        self.dropout = nn.Dropout(dropout)
        if heads:
            self.attn_qkv = MPConv(after, 3 * after, 1)
            self.attn_proj = MPConv(after, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, C, H, W) under (B, E) to (B, C', H', W')."""
        if self.direction == "down":
            x = avg_pool2d(x, 2)
        elif self.direction == "up":
            x = interpolate(x, scale_factor=2.0, mode="nearest")
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if not self.decoder:
            x = skip = normalized(skip, (1,))  # pixel by pixel
        scale = self.emb_linear(embedding, self.emb_gain) + 1
        hidden = mp_silu(self.conv_res0(mp_silu(x)) * scale[:, :, None, None])
        x = mp_sum(skip, self.conv_res1(self.dropout(hidden)), self.res_balance)
        if self.heads:
            x = mp_sum(x, self._attend(x), self.attn_balance)
        return x.clamp(-self.clip_act, self.clip_act)

    def _attend(self, x: Tensor) -> Tensor:
        # (B, 3, heads, H W, C / heads); cosine attention, since all three have unit magnitude.
        mixed = self.attn_qkv(x).unflatten(1, (self.heads, -1, 3)).flatten(4)
        query, key, value = normalized(mixed, (2,)).permute(3, 0, 1, 4, 2).unbind(0)
        found = scaled_dot_product_attention(query, key, value)
        return self.attn_proj(found.transpose(2, 3).reshape(x.shape))


class EDM2UNet(ModelMixin, ConfigMixin):
    """The U-Net of EDM2; called as diffusers' `UNet2DModel`.

    Args:
        sample_size: Height and width, pixels of an image or of a latent.
        in_channels: Of a sample.
        out_channels: Likewise.
        num_class_embeds: Number of class labels; None for none.
        model_channels: Width that the multipliers multiply.
        channel_mult: Width of each resolution, finest first.
        channel_mult_noise: Length of the embedded noise level; None for the finest width.
        channel_mult_emb: Length of the conditioning vector; None for the largest width.
        num_blocks: Residual blocks of each resolution.
        attn_resolutions: Heights at which the blocks have self-attention.
        channels_per_head: Of the self-attention.
        label_balance: Share of the label beside the noise level.
        concat_balance: Share of the encoder's features in the decoder.
        dropout: Probability, in training mode.
        res_balance: As in `Block`.
        attn_balance: Likewise.
        clip_act: Likewise.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        num_class_embeds: int | None = None,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        channels_per_head: int = 64,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        widths = [model_channels * each for each in channel_mult]
        sides = [sample_size >> level for level in range(len(widths))]
        noise = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        embedding = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, embedding)
        self.emb_label = MPConv(num_class_embeds, embedding) if num_class_embeds else None

        def block(
            before: int,
            after: int,
            decoder: bool = False,
            direction: Literal["down", "up"] | None = None,
            attention: bool = False,
        ) -> Block:
            heads = after // channels_per_head if attention else 0
            balances = (dropout, res_balance, attn_balance, clip_act)
            return Block((before, after), embedding, decoder, direction, heads, *balances)

        entered = MPConv(in_channels + 1, widths[0], 3)  # of ones, in place of biases
        self.enc = nn.ModuleDict({f"{sides[0]}x{sides[0]}_conv": entered})
        width, skips = widths[0], [widths[0]]
        levels = list(zip(sides, widths, strict=True))
        for side, own in levels:
            if side != sides[0]:
                self.enc[f"{side}x{side}_down"] = block(width, width, direction="down")
                skips.append(width)
            for number in range(num_blocks):
                attention = side in attn_resolutions
                self.enc[f"{side}x{side}_block{number}"] = block(width, own, attention=attention)
                width = own
                skips.append(width)

        self.dec = nn.ModuleDict()
        for side, own in reversed(levels):
            if side == sides[-1]:
                self.dec[f"{side}x{side}_in0"] = block(width, width, True, attention=True)
                self.dec[f"{side}x{side}_in1"] = block(width, width, True)
            else:
                self.dec[f"{side}x{side}_up"] = block(width, width, True, direction="up")
            for number in range(num_blocks + 1):
                self.dec[f"{side}x{side}_block{number}"] = block(
                    width + skips.pop(), own, True, attention=side in attn_resolutions
                )
                width = own
        self.out_conv = MPConv(width, out_channels, 3)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: (B, in_channels, H, W).
            time: (B,) float, as the preconditioning makes it of sigma.
            class_labels: (B,) int64; None means no class, which only networks trained with label
                dropout have seen.

        Returns:
            (B, out_channels, H, W).
        """
        embedding = self._embed(time, class_labels)
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("_conv") else module(x, embedding)
            skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = module(x, embedding)
        return self.out_conv(x, self.out_gain)

    def _embed(self, time: Tensor, label: Tensor | None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(time))
        if self.emb_label is not None:
            count = self.emb_label.weight.shape[1]
            chosen = embedding.new_zeros(len(time), count)
            if label is not None:
                chosen = one_hot(label, count).to(embedding.dtype)
            other = self.emb_label(chosen * math.sqrt(count))
            embedding = mp_sum(embedding, other, self.label_balance)
        return mp_silu(embedding)
