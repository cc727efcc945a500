"""Before a distillation: latents, horizon and transfer side by side, and what follows from them.

The three answers bound different divergences, which do not add up: they are never summed. What may
follow is little and on the safe side: which instructor to distil, a noise level that training must
reach, and whether to distil at all.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eval import card
from eval.horizon import ask as horizon_report
from eval.horizon.certificate import Horizon, horizon
from eval.latents import ask as latent_report
from eval.latents.autoencoders import load_autoencoder
from eval.settings import Settings
from eval.transfer import ask as transfer_report
from eval.transfer.ask import Answer, Question
from instil.base import data
from instil.base.errors import InstilError
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.monitor import note
from instructors.codec import Autoencoder
from instructors.load import Instructor, load
from instructors.sources import network_folder, weights_hash

Rows = list[dict[str, str]]
NATS, TOLERANCE = 1.0, 0.02  # of a latent space, of the horizon


def preflight(
    name: str,
    source: str | None,
    target: str | None,
    question: Question,
    out: Path,
    command: str,
) -> tuple[Rows, dict[str, Any]]:
    """Ask all three, as far as there are images to ask with.

    Args:
        name: The instructor, as `instructors.load.load` takes it.
        source: Images it was made for; None takes what its card names.
        target: Images of one's own; None looks at the instructor's own samples.
        question: Of the transfer.
        out: The JSON file that will hold the answer; the adapted instructor goes beside it, into
            `FILE-instructor`, replacing one of an earlier preflight.
        command: For that instructor's card.

    Returns:
        Table rows and facts. `distill` in them is what a distillation reads.

    Raises:
        InstilError: Something cannot be loaded, or does not fit.
    """
    question.check()
    instructor = load(name)
    accelerator = accelerator_for(question.recipe.precision, (), ".")
    facts: dict[str, Any] = {"instructor": {"source": name, "sha256": instructor.card.sha256}}
    if target is None:
        if source is not None:
            raise InstilError("--source: says nothing without --target; give both, or neither")
        note("latents and transfer: need images of one's own, --target; the horizon is looked at")
        found = horizon_report.as_it_is(name, None, horizon_report.Question(seed=question.seed))
        where, far = network_folder(name), found.horizon
        verdict, chosen = found.verdict, name
        facts |= {"latents": None, "transfer": None, "horizon": found.facts()}
        rows = _horizon_rows(far, verdict)
    else:
        images = data.load(target)
        known = data.load(source) if source else card.training_images(instructor.card.folder)
        rows, facts["latents"] = _latents(instructor, known, images, question, accelerator)
        answer = transfer_report.ask(instructor, images, question, accelerator)
        folder = out.with_name(f"{out.stem}-instructor")
        transfer_report.refit(instructor, answer, question, accelerator, folder, command)
        far = horizon(answer.losses[answer.comparison.best], TOLERANCE, question.seed)
        verdict = horizon_report.verdict(far, "gaussian")
        seen = horizon_report.horizon_facts(far) | {"verdict": verdict}
        facts |= {"transfer": answer.facts(), "horizon": seen}
        rows += _transfer_rows(answer) + _horizon_rows(far, verdict)
        where, chosen = network_folder(str(folder)), folder.name
    settings = Settings(
        instructor=chosen,
        sha256=weights_hash(where),
        T_eps=far.sufficient.value,
        sigma_range=(instructor.denoiser.sigma_min, instructor.denoiser.sigma_max),
        distil=far.gain.clear,
    )
    facts["distill"] = settings.model_dump(mode="json")
    facts["verdict"] = _verdict(settings, verdict)
    facts["protocol"] = f"{name} before a distillation, on {target or 'its own samples'}"
    return rows, facts


def _latents(
    instructor: Instructor,
    known: data.Images | None,
    images: data.Images,
    question: Question,
    accelerator: Accelerator,
) -> tuple[Rows, dict[str, Any] | None]:
    """Of the instructor's autoencoder; of principal directions, where it has none."""
    if known is None:
        note("latents: need images that the instructor was made for, --source")
        return [], None
    lowest, device = question.recipe.lowest, accelerator.device
    domains = latent_report.Domains.of(known, images, question.seed)
    try:
        if isinstance(instructor.codec, Autoencoder):
            path = str(instructor.card.folder / "vae")
            autoencoder = load_autoencoder(path, images.shape, device)
            found = latent_report.autoencoder_report(
                domains, autoencoder, path, lowest, NATS, device
            )
        else:
            found = latent_report.linear_report(domains, None, 5 * lowest, NATS)
    except InstilError as error:  # an answer of its own: nothing is small enough
        note(f"latents: {error}")
        return [], {"verdict": None, "reason": str(error)}
    choice, sentence = found["verdict"]["choice"], found["verdict"]["sentence"]
    if not isinstance(instructor.codec, Autoencoder):
        choice = f"none in use; if one were, {choice}"
    return [{"question": "latents", "answer": choice, "why": sentence}], found


def _transfer_rows(answer: Answer) -> Rows:
    facts = answer.facts()
    return [{"question": "transfer", "answer": facts["best"], "why": facts["verdict"]}]


def _horizon_rows(far: Horizon, verdict: str) -> Rows:
    return [{"question": "horizon", "answer": f"T_eps {far.sufficient}", "why": verdict}]


def _verdict(settings: Settings, horizon_verdict: str) -> str:
    """One sentence: whether to distil, which instructor, and up to which noise level."""
    if not settings.distil:
        return f"Do not distil this. {horizon_verdict}"
    return (
        f"Distil {settings.instructor} ({settings.sha256}), with noise up to sigma "
        f"{settings.T_eps:.3g} at least."
    )
