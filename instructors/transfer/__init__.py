"""Transfer of an instructor to a small target set through a shared embedding."""

from typing import Literal, get_args

Arm = Literal["scratch", "frozen", "finetune", "finetune-l2", "lora"]
ARMS: tuple[Arm, ...] = get_args(Arm)
