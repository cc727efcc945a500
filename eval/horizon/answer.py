"""A certificate as a verdict, as table rows and as facts for JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from eval.answer import Answer, Rows
from eval.cross_fitting import Losses
from eval.horizon.certificate import Horizon, horizon
from eval.questions import Horizon as Question
from eval.questions import Reference
from instil.base import data
from instructors.instructor import Instructor


@dataclass(frozen=True)
class Measured:
    """A horizon and what it was read off.

    Attributes:
        horizon: The certificate.
        losses: Held-out losses of the model and of the reference.
        protocol: How they were measured, in one sentence.
        reference: Distribution the diffusion would start from.
        instructor: The model, where it was not trained for the question.
        training: Images the model was trained on, where known.
    """

    horizon: Horizon
    losses: Losses
    protocol: str
    reference: Reference
    instructor: Instructor | None = None
    training: data.Images | None = None

    @classmethod
    def of(cls, losses: Losses, question: Question, protocol: str, **known: Any) -> "Measured":
        """Read the certificate off losses.

        Args:
            losses: Held-out losses.
            question: The question they answer.
            protocol: Model and images, in words; levels and draws are added.
            known: `instructor` and `training`.
        """
        certificate = horizon(losses, question.tolerance, question.seed)
        levels = certificate.sigmas
        protocol += (
            f"; reference {question.reference}, sigma {levels[0].item():g} to "
            f"{levels[-1].item():g}, {len(levels)} levels, {question.draws} noise draws"
        )
        return cls(certificate, losses, protocol, question.reference, **known)

    def answer(self) -> Answer:
        """Rows, facts and verdict."""
        said = verdict(self.horizon, self.reference)
        facts = facts_of(self.horizon) | {"protocol": self.protocol, "verdict": said}
        return Answer(self.protocol, rows_of(self.horizon), facts, said)


def rows_of(certificate: Horizon) -> Rows:
    """A certificate for the table."""
    gap = certificate.memorization_gap
    values = {
        "T_opt: sigma where the certificate is least": str(certificate.best),
        f"T_eps: smallest sigma within {certificate.tolerance:g} nats": str(certificate.sufficient),
        "gain over the reference alone, nats": str(certificate.gain),
        "memorization gap, nats": "unknown" if gap is None else str(gap),
        "crossings": ", ".join(f"{level:.3g}" for level in certificate.crossings) or "none",
    }
    return [{"figure": name, "value ± standard error": value} for name, value in values.items()]


def facts_of(certificate: Horizon) -> dict[str, Any]:
    """A certificate for JSON; every estimate with its standard error."""
    gap = certificate.memorization_gap
    return {
        "T_opt": asdict(certificate.best),
        "T_eps": asdict(certificate.sufficient),
        "gain": asdict(certificate.gain),
        "memorization_gap": None if gap is None else asdict(gap),
        "distil": certificate.gain.clear,
        "tolerance": certificate.tolerance,
        "crossings": list(certificate.crossings),
        "curve": {
            "sigma": certificate.sigmas.tolist(),
            "nats": certificate.nats.tolist(),
            "stderr": certificate.stderr.tolist(),
        },
    }


def verdict(certificate: Horizon, reference: Reference) -> str:
    """The answer in one sentence."""
    gap, gain = certificate.memorization_gap, certificate.gain
    best, sufficient = certificate.best.value, certificate.sufficient.value
    learnt = ""
    if gap is not None and gap.clear and gap.value > 0:
        learnt = f"; its loss on its training data is {gap.value:.3g} nats lower"
    if certificate.collapsed:
        return (
            f"Do not distil this: at no noise level does it gain anything over the {reference} "
            f"reference on data it was not trained on{learnt}."
        )
    if not gain.clear:
        return (
            f"Undecided: its gain over the {reference} reference, {gain} nats, is not clear of "
            "zero; take more images."
        )
    if certificate.unbounded:
        return (
            f"Run it over its whole range, up to sigma {best:.3g}, where it still gains; starting "
            f"at {sufficient:.3g} costs {certificate.tolerance:g} nats{learnt}."
        )
    return (
        f"Run it up to sigma {sufficient:.3g} at least: starting there from the noisy {reference} "
        f"reference costs {certificate.tolerance:g} nats, above {best:.3g} nothing is "
        f"gained{learnt}."
    )
