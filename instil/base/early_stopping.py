"""Early stopping, at the least loss on held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from instil.base.config import Config
from instil.base.errors import InstilError

if TYPE_CHECKING:
    from torch import Tensor, nn


class EarlyStopping(Config):
    """Early stopping on a held-out part of the training set.

    Attributes:
        share: Fraction of the training samples that is held out, at least one sample and at most
            all but one.
        every: Updates between two measurements of the held-out loss.
        patience: Measurements in a row without a new least loss after which training ends.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    every: PositiveInt = 25
    patience: PositiveInt = 8

    def split(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Row numbers of the samples to train on, and of those held out at random, both in order.

        Raises:
            InstilError: There are fewer than two samples.
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
        """Carry out updates, then restore the weights of the least loss.

        The module before the first update is a candidate too, so that no training makes a
        transferred model worse on the samples that decide.

        Args:
            module: Module being trained; its best weights are restored in place.
            updates: Iterable that makes one update per item.
            loss: Loss on the held-out samples, under the same noise at each call.

        Returns:
            The number of the best update, 0 for the start, and its loss.
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
