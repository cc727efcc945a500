"""Before a distillation: latents, horizon and transfer side by side, and what follows from them.

The three answers bound different divergences, which do not add up: they are never summed. What may
follow is little and on the safe side: which instructor to distil, a noise level that training must
reach, and whether to distil at all.
"""

from typing import Any

from accelerate import Accelerator

from eval import card
from eval.answer import Answer, Rows
from eval.horizon import answer as horizon_answer
from eval.horizon.certificate import Horizon, horizon
from eval.horizon.pretrained import measure_pretrained
from eval.latents.autoencoders import load_autoencoder
from eval.latents.domains import Domains
from eval.latents.report import autoencoder_report, linear_report
from eval.questions import Horizon as HorizonQuestion
from eval.questions import Preflight
from eval.settings import Settings
from eval.transfer.cross_validate import cross_validate, recipe_of, refit
from instil.base import data
from instil.base.errors import InstilError
from instil.base.files import check_output
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.monitor import note
from instructors.codec import Autoencoder
from instructors.files.sources import network_folder
from instructors.files.weights import weights_hash
from instructors.instructor import Instructor
from instructors.load import load
from instructors.transfer.arms import Transfer

NATS, TOLERANCE = 1.0, 0.02  # of a latent space, of the horizon


def ask(question: Preflight) -> Answer:
    """Latents, transfer and horizon, as far as there are images to ask with.

    The adapted instructor goes beside `question.out`, into `FILE-instructor`, replacing one of an
    earlier preflight.

    Returns:
        An answer whose fact `distill` holds what a distillation reads.

    Raises:
        InstilError: Something cannot be loaded, or does not fit.
    """
    check_output("--out", question.out, ".json")
    recipe, name = recipe_of(question), question.instructor
    instructor = load(name)
    facts: dict[str, Any] = {"instructor": {"source": name, "sha256": instructor.card.sha256}}
    if question.target is None:
        if question.source is not None:
            raise InstilError("--source: says nothing without --target; give both, or neither")
        note("latents and transfer: need images of one's own, --target; the horizon is looked at")
        measured = measure_pretrained(HorizonQuestion(model=name, folds=1, seed=question.seed))
        horizon_said, far = measured.answer(), measured.horizon
        verdict, where, chosen = str(horizon_said.verdict), network_folder(name), name
        facts |= {"latents": None, "transfer": None, "horizon": horizon_said.facts}
        rows = _horizon_rows(far, verdict)
    else:
        accelerator = accelerator_for(recipe.precision, (), ".")
        images = data.load(question.target)
        rows, facts["latents"] = _latents(instructor, images, question, recipe, accelerator)
        result = cross_validate(instructor, images, question, recipe, accelerator)
        folder = question.out.with_name(f"{question.out.stem}-instructor")
        refit(instructor, result, recipe, accelerator, folder, question.command)
        far = horizon(result.losses[result.comparison.best], TOLERANCE, question.seed)
        verdict = horizon_answer.verdict(far, "gaussian")
        transfer = result.answer()
        facts["transfer"] = transfer.facts
        facts["horizon"] = horizon_answer.facts_of(far) | {"verdict": verdict}
        best, said = transfer.facts["best"], str(transfer.verdict)
        rows += [{"question": "transfer", "answer": best, "why": said}]
        rows += _horizon_rows(far, verdict)
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
    facts["protocol"] = f"{name} before a distillation, on {question.target or 'its own samples'}"
    return Answer(facts["protocol"], rows, facts, facts["verdict"])


def _latents(
    instructor: Instructor,
    images: data.Images,
    question: Preflight,
    recipe: Transfer,
    accelerator: Accelerator,
) -> tuple[Rows, dict[str, Any] | None]:
    """Of the instructor's autoencoder; of principal directions, where it has none."""
    named = data.load(question.source) if question.source else None
    known = named or card.training_images(instructor.card.folder)
    if known is None:
        note("latents: need images that the instructor was made for, --source")
        return [], None
    latent, device = isinstance(instructor.codec, Autoencoder), accelerator.device
    domains = Domains.of(known, images, question.seed)
    try:
        if latent:
            path = str(instructor.card.folder / "vae")
            autoencoder = load_autoencoder(path, images.shape, device)
            found = autoencoder_report(domains, autoencoder, path, recipe.lowest, NATS, device)
        else:
            found = linear_report(domains, None, 5 * recipe.lowest, NATS)
    except InstilError as error:  # an answer of its own: nothing is small enough
        note(f"latents: {error}")
        return [], {"verdict": None, "reason": str(error)}
    choice, sentence = found["verdict"]["choice"], found["verdict"]["sentence"]
    choice = choice if latent else f"none in use; if one were, {choice}"
    return [{"question": "latents", "answer": choice, "why": sentence}], found


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
