"""`python -m eval vae-bound`: the generalisation bound of a VAE, beside the bounded loss."""

from dataclasses import asdict

from torch import Tensor

from eval.answer import Answer, device
from eval.image_sets import check_samples, refuse_shared
from eval.questions import VaeBound
from eval.vae.bound import VAEBound, vae_bound
from eval.vae.models import load_vae, train_small
from instil.base import data
from instil.base.draws import Draws
from instil.base.errors import InstilError

SMALL = "mlp"


def ask(question: VaeBound) -> Answer:
    """The bound of an autoencoder, term by term, and the loss it bounds.

    Raises:
        InstilError: The images differ in shape or are shared, or the autoencoder cannot be loaded.
    """
    training, held_out = data.load(question.trained_on), data.load(question.data)
    _check(training, held_out)
    seed, source = question.seed, question.autoencoder
    seen, unseen = (_some(each, question.samples, seed) for each in (training, held_out))
    if source == SMALL:
        vae = train_small(training.pixels.float() / 255, seed)
    else:
        vae = load_vae(source, training.shape, device(), seed)
    terms = vae_bound(
        vae.encode,
        vae.decoder,
        vae.initial,
        seen,
        unseen,
        weight_noise=question.weight_noise,
        draws=question.draws,
        seed=seed,
        count=len(training),
    )
    values = {
        "reconstruction of training images": str(terms.reconstruction),
        "encoder term": str(terms.encoder),
        "decoder term": f"{terms.generator:.4g}",
        "bound": f"{terms.total:.4g}",
        "left side, measured": str(terms.direct),
    }
    rows = [{"figure": name, "value ± standard error": value} for name, value in values.items()]
    protocol = (
        f"{source}: {len(seen)} of {len(training)} training images of {training.source}, "
        f"{len(unseen)} others of {held_out.source}; mean squared error on [0, 1]"
    )
    facts = asdict(terms) | {
        "total": terms.total,
        "vacuous": terms.vacuous,
        "verdict": verdict(terms),
        "weight_noise": question.weight_noise,
        "protocol": protocol,
    }
    return Answer(protocol, rows, facts, verdict(terms))


def verdict(terms: VAEBound) -> str:
    """The answer in one sentence, and what it is worth."""
    if terms.vacuous:
        return (
            f"Vacuous, as this bound is as a rule: {terms.total:.3g} on a loss that is at most 1. "
            "Its terms show how a decoder moves away from its start, not whether it is good; the "
            f"loss measured directly, {terms.direct.value:.3g}, does."
        )
    return (
        f"The loss of unseen images against samples of the prior is at most {terms.total:.3g} on "
        f"average; measured directly it is {terms.direct.value:.3g}."
    )


def _check(training: data.Images, held_out: data.Images) -> None:
    if training.shape != held_out.shape:
        raise InstilError(
            f"{held_out.source}: images of the shape {held_out.shape}, {training.source} of "
            f"{training.shape}; give images of one shape"
        )
    for each in (training, held_out):
        check_samples(each.pixels)
    refuse_shared(held_out.pixels, training.pixels, "--data", "--trained-on")


def _some(images: data.Images, most: int, seed: int) -> Tensor:
    """At most `most` images, at random, in [0, 1]."""
    order = Draws.of_range(seed, 0, 0, len(images)).uniform("subset").argsort()
    return images.pixels[order[:most].sort().values].float() / 255
