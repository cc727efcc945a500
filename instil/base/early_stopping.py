"""Stopping a training where the loss on samples it does not see is least."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from instil.base.config import Config
from instil.base.errors import InstilError

if TYPE_CHECKING:
    from torch import Tensor, nn


class EarlyStopping(Config):
    """What is held out of a training set, and how long a loss may go without a new least value.

    Attributes:
        share: Of the training samples, held out to decide when to stop; one sample at least, and
            one less than there are at most.
        every: Updates between two looks at the loss.
        patience: Looks in a row without a new least loss after which training ends.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    every: PositiveInt = 25
    patience: PositiveInt = 8

    def split(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Row numbers to train on and, at random, those that decide, both in order.

        Raises:
            InstilError: There are not two of them.
        """
        from instil.base.draws import Draws

        if count < 2:
            raise InstilError(
                f"stopping: {count} sample(s) cannot be split; give two at least, or set it to null"
            )
        order = Draws.of_range(seed, 0, 0, count).uniform("early stopping").argsort()
        held = min(max(1, round(self.share * count)), count - 1)
        return order[held:].sort().values, order[:held].sort().values

    def run(
        self, module: nn.Module, updates: Iterable[object], loss: Callable[[], float]
    ) -> tuple[int, float]:
        """Carry out updates, and leave the module as it was when the loss was least.

        The module before the first update is a candidate too, so that no training makes a
        transferred model worse on the samples that decide.

        Args:
            module: What the loss is of; put back in place.
            updates: Each item is one.
            loss: Of the held-out samples; the same noise each time.

        Returns:
            The number of the update that was kept, 0 for none, and its loss.
        """
        best, kept, stale = (0, loss()), _copy(module), 0
        for number, _ in enumerate(updates, start=1):
            if number % self.every:
                continue
            found = loss()
            if found < best[1]:
                best, kept, stale = (number, found), _copy(module), 0
            else:
                stale += 1
            if stale >= self.patience:
                break
        module.load_state_dict(kept)
        return best


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
