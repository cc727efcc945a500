"""Does a source help a target with few samples? Arms compared by cross-validation, in nats.

An arm (see `instructors.transfer.arms`) is any way to fit a model to samples. Each is fitted to all
folds but one and scored on that one, with the same folds and noise for all, so that differences
are paired. The arm `frozen` sees the source's embedding h alone, `finetune` and `scratch` may learn
an embedding of their own: their difference estimates the embedding gap, the information on the
target that the borrowed embedding does not pass on. Transfer helps if the gap is less than what
`scratch` loses for want of samples. The exact linear case is in `experiments.transfer.laws`.

Source:
    Tian and Shen, "Enhancing Accuracy in Generative Models via Knowledge Transfer", arXiv
    2405.16837, name cross-validation against negative transfer and give no procedure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eval.curves import Estimate
from instil.base.errors import InstilError

SCRATCH, FROZEN = "scratch", "frozen"
OWN_EMBEDDING = ("finetune", "finetune-l2", SCRATCH)  # arms that train the embedding too


@dataclass(frozen=True)
class Comparison:
    """Held-out nats of every arm on every sample.

    Attributes:
        nats: By arm, (N,) float64.
        parts: Rows of each fold.
    """

    nats: Mapping[str, Tensor]
    parts: Sequence[Tensor] = field(repr=False)

    @property
    def best(self) -> str:
        """The arm with the least mean."""
        return min(self.nats, key=lambda arm: self.nats[arm].mean().item())

    @property
    def transferred(self) -> str | None:
        """The best arm that uses the source; None if there is none."""
        others = {arm: nats.mean().item() for arm, nats in self.nats.items() if arm != SCRATCH}
        return min(others, key=lambda arm: others[arm]) if others else None

    def less(self, first: str, second: str) -> Estimate:
        """Nats of the first arm less those of the second, paired."""
        return paired(self.nats[first], self.nats[second], self.parts)

    @property
    def gain(self) -> Estimate | None:
        """Nats by which the best transferring arm beats scratch; negative where it harms."""
        if SCRATCH not in self.nats or self.transferred is None:
            return None
        return self.less(SCRATCH, self.transferred)

    @property
    def seeing(self) -> str | None:
        """The best arm that trains an embedding of its own; None if there is none."""
        tried = [arm for arm in OWN_EMBEDDING if arm in self.nats]
        return min(tried, key=lambda arm: self.nats[arm].mean().item()) if tried else None

    @property
    def gap(self) -> Estimate | None:
        """`embedding_gap` of the source's embedding, from `frozen` and `seeing`."""
        if FROZEN not in self.nats or self.seeing is None:
            return None
        return embedding_gap(self.nats[FROZEN], self.nats[self.seeing], self.parts)

    @property
    def undecided(self) -> bool:
        """Whether transfer and scratch are within two standard errors of each other."""
        return self.gain is not None and not self.gain.clear

    @property
    def negative_transfer(self) -> bool:
        """Whether the source clearly harms, however it is used."""
        return self.gain is not None and self.gain.clear and self.gain.value < 0


def folds_for(count: int) -> int:
    """10 folds below 200 samples, where leaving out a fifth would favour transfer; else 5."""
    return 10 if count < 200 else 5


def verdict(found: Comparison) -> str:
    """The answer in one sentence."""
    gain, best = found.gain, found.best
    if gain is None:
        return f"{best} is the best of the arms that were tried; nothing says whether it helps."
    amount = f"{abs(gain.value):.3g} ± {gain.stderr:.1g} nats a sample"
    if found.negative_transfer:
        return (
            f"Do not transfer: the source harms, its best arm ({found.transferred}) is {amount} "
            "worse than training from scratch."
        )
    if found.undecided:
        return (
            f"Undecided: {found.transferred} and scratch are {amount} apart; "
            "more target samples would tell."
        )
    return f"Transfer by {best}: it is {amount} better than training from scratch."


def embedding_gap(blind: Tensor, seeing: Tensor, parts: Sequence[Tensor] = ()) -> Estimate:
    """I(x; z | h) in nats: the information on x that an embedding h(z) does not pass on.

    It is zero if and only if the shared embedding condition holds. Estimated by two models fitted
    to the same samples, so that it is net of what each lost by being estimated; take many samples.

    Args:
        blind: (N,) held-out nats of a model given h(z).
        seeing: (N,) of one given z, on the same samples with the same noise.
        parts: Rows of each fold, where each had a model of its own.

    Raises:
        InstilError: They are not of as many samples.
    """
    if blind.shape != seeing.shape or len(blind) < 2:
        raise InstilError(
            f"nats of {len(blind)} and {len(seeing)} samples: expected as many, two at least"
        )
    return paired(blind, seeing, parts)


def paired(first: Tensor, second: Tensor, parts: Sequence[Tensor] = ()) -> Estimate:
    """The mean difference of two arms, (N,) nats each, by pairs of samples.

    Samples of one fold share a model, so the standard error is the larger of that over samples and
    that over folds.
    """
    difference = first - second
    over_samples = Estimate.of(difference)
    if not parts:
        return over_samples
    over_folds = Estimate.of(torch.stack([difference[rows].mean() for rows in parts]))
    return Estimate(over_samples.value, max(over_samples.stderr, over_folds.stderr))
