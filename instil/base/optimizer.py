"""Adam, its learning-rate schedule and gradient clipping, as one recipe section."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from instil.base.config import Config
from instil.base.errors import InstilError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Beta = Annotated[float, Field(ge=0, lt=1)]


class Adam(Config):
    """Adam with a warm-up and a schedule.

    Attributes:
        lr: Highest learning rate.
        betas: Decay rates of the two moments; the first is 0 in Diff-Instruct and SiD.
        eps: Constant added to the root of the second moment.
        weight_decay: Decoupled weight decay (AdamW).
        warmup: Updates over which the learning rate rises linearly from 0.
        schedule: Course of the learning rate from the warm-up to the last update.
        clip: Largest global norm of the gradients; null does not clip.
        bits: Bits per number of the moments; 8 needs the package bitsandbytes.
    """

    lr: PositiveFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.0, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip: PositiveFloat | None = None
    bits: Literal[8, 32] = 32

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer of a module's trainable parameters.

        Raises:
            InstilError: 8 bits, and bitsandbytes is missing.
        """
        from torch.optim import AdamW

        kind: Any = AdamW
        # a third of the time of foreach on a CPU, one kernel on a GPU
        options: dict[str, Any] = {"fused": True}
        if self.bits == 8:
            kind, options = _eight_bits(), {}
        return kind(
            trained(module),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            **options,
        )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of the update that follows `step` done ones, out of `steps`."""
        progress = min(step / steps, 1.0)
        shape = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[self.schedule]
        return self.lr * shape * (min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0)

    def update(self, optimizer: Optimizer, step: int, steps: int) -> Tensor:
        """Clip, step with the scheduled rate, and clear the gradients.

        Returns:
            () the gradient norm before clipping, on the device; not finite if any gradient is not.
        """
        from torch.nn.utils import clip_grad_norm_

        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip_grad_norm_(parameters, self.clip or math.inf, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of a module."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _eight_bits() -> Any:
    """AdamW with moments quantised in blocks (Dettmers et al. 2022, arXiv 2110.02861)."""
    try:
        from bitsandbytes.optim import AdamW8bit  # pyrefly: ignore[missing-import]
    except ImportError:
        raise InstilError(
            "optimizer.bits: 8 needs the package bitsandbytes; pip install 'instil[bits]'"
        ) from None
    return AdamW8bit
