"""`python -m eval latents`: is this latent space right for that data?"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.answer import Answer, Rows, device
from eval.curves import Estimate
from eval.latents.autoencoders import load_autoencoder
from eval.latents.domains import Domains
from eval.latents.plot import latent_prices
from eval.latents.report import (
    AT_SIGMA,
    HALF_A_DECADE_ABOVE,
    RELATIVE_LEVELS,
    autoencoder_report,
    linear_report,
)
from eval.questions import Latents
from instil.base import data
from instil.base.errors import InstilError
from instil.base.files import check_output


def ask(question: Latents) -> Answer:
    """What a frozen latent space costs on the target.

    Raises:
        InstilError: Images or autoencoder cannot be loaded, or do not fit each other.
    """
    check_output("--plot", question.plot, ".png")
    source, target = data.load(question.source), data.load(question.target)
    features, dim = source.pixels[0].numel(), question.dim
    if dim is not None and dim >= features:
        raise InstilError(
            f"--dim {dim}: expected 1 to {features - 1}, since an image has {features} values"
        )
    domains = Domains.of(source, target, question.seed)
    if question.autoencoder:
        name, where = question.autoencoder, device()
        autoencoder = load_autoencoder(name, target.shape, where)
        facts = autoencoder_report(domains, autoencoder, name, question.sigma, question.nats, where)
    else:
        facts = linear_report(domains, dim, question.sigma, question.nats)
    facts["protocol"] = (
        f"{question.source} on {question.target}: {facts['dim']} dimensions, "
        f"{facts['target']['held_out']} held-out images"
    )
    if question.plot:
        latent_prices(facts, question.plot)
    return Answer(facts["protocol"], rows(facts), facts, facts["verdict"]["sentence"])


def rows(facts: Mapping[str, Any]) -> Rows:
    """Every latent space at the lowest noise level of use, and half a decade above it."""
    curves = dict(facts["prices"]["arms"])
    if "bound" in facts["prices"]:
        curves["bound on reuse"] = facts["prices"]["bound"]
    table = []
    for name, curve in curves.items():
        above = facts["sigma"] * RELATIVE_LEVELS[HALF_A_DECADE_ABOVE]
        row = {
            "latent space": name,
            f"nats from sigma {facts['sigma']:g}": _number(curve, AT_SIGMA),
            f"from {above:.3g}": _number(curve, HALF_A_DECADE_ABOVE),
        }
        if "autoencoder" not in facts:
            aware = curve.get("noise_aware")
            row["noise-aware"] = _number(aware, AT_SIGMA) if aware else ""
        table.append(row)
    return table


def _number(curve: Mapping[str, Sequence[float]], level: int) -> str:
    return str(Estimate(curve["nats"][level], curve["stderr"][level]))
