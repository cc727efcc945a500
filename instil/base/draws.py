"""Randomness as a function of (seed, step, stream, global sample index).

A counter-based generator: every number is a hash of where it is used, so nothing has to be saved to
resume a run, two processes draw exactly what one would have drawn, and image k is image k whatever
batch it is generated in. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators"), applied twice; it runs elementwise on any device.
"""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The int64 with the bits of the unsigned `value`: torch has no unsigned arithmetic."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _shift(bits: Tensor, count: int) -> Tensor:
    """Logical right shift: torch's `>>` copies the sign of an int64."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 multiplication wraps, as it must."""
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift(bits, 31)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step, for the samples that `index` names.

    Args:
        seed: Seed of the run.
        step: Step of the run; 0 for sampling.
        index: (B,) int64, global index of each sample. Its device is the device of every draw.
    """

    seed: int
    step: int
    index: Tensor

    @classmethod
    def of_range(
        cls, seed: int, step: int, start: int, count: int, device: torch.device | str = "cpu"
    ) -> "Draws":
        """Draws for the samples `start`, …, `start + count - 1`."""
        return cls(seed, step, torch.arange(start, start + count, device=device))

    def _bits(self, stream: str, count: int) -> Tensor:
        """(B, count) int64 with 64 random bits each."""
        key = torch.zeros((), dtype=torch.int64, device=self.index.device)
        for part in (self.seed, self.step, zlib.crc32(stream.encode())):
            key = _mix(key + _signed((part + 1) * _GOLDEN))
        key = _mix(key ^ _mix(self.index * _signed(_GOLDEN)))[:, None]  # one key per sample
        counter = torch.arange(1, count + 1, device=self.index.device) * _signed(_GOLDEN)
        return _mix(key ^ _mix(key + counter))

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float64 in the open interval (0, 1), 52 random bits each."""
        bits = _shift(self._bits(stream, math.prod(shape)), 12)
        return ((bits.double() + 0.5) * 2.0**-52).view(len(self.index), *shape)

    def normal(
        self, stream: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(B, *shape) standard normal: Box-Muller in float32 on the halves of each hash.

        Values stay below 6.7 in magnitude, since a half holds 32 bits.
        """
        count = math.prod(shape)
        bits = self._bits(stream, (count + 1) // 2)
        radius = (_shift(bits, 32).float() + 0.5).mul(2.0**-32).log().mul(-2).clamp(min=0).sqrt()
        angle = (bits & 0xFFFFFFFF).float().mul(2 * math.pi * 2.0**-32)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pairs[:, :count].reshape(len(self.index), *shape).to(dtype)

    def integers(self, stream: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) int64, uniform on 0, …, `high` - 1."""
        return (self.uniform(stream, shape) * high).long()


def library_seed(*parts: int) -> int:
    """A seed for a library that knows only its own generator, such as torch's dropout."""
    return zlib.crc32(repr(parts).encode())
