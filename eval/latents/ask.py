"""Is this latent space right for that data? All that `python -m eval latents` says, as one tree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.curves import Estimate, cross_entropy
from eval.image_sets import check_samples, compare_scales, refuse_shared, some
from eval.latents import reuse
from eval.latents.autoencoders import (
    Autoencoder,
    local_angles,
    reconstruct,
    reconstruction_kl_bound,
    residuals,
    reuse_sigma,
)
from instil.base.data import Images, floats
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instructors.analytic import DENSE, fit_gaussian

SPAN = 10.0 ** torch.linspace(-1, 1.5, 21, dtype=torch.float64)  # 8 levels a decade, 1 the 9th
HERE, ABOVE = 8, 12
PER_VALUE = 0.01  # nats: the stricter tolerance, for every value of an image


@dataclass(frozen=True)
class Domains:
    """Two sets of images, looked at and split: a third of each is held out.

    Attributes:
        source: (N, C, H, W) uint8, all of the source.
        source_parts: Its training and its held-out part.
        target_parts: Likewise of the target.
        facts: What they are, for the report.
    """

    source: Tensor
    source_parts: tuple[Tensor, Tensor]
    target_parts: tuple[Tensor, Tensor]
    facts: dict[str, Any]

    @classmethod
    def of(cls, source: Images, target: Images, seed: int) -> "Domains":
        """Drop repeated images, refuse what no conclusion would hold on, and split.

        Raises:
            InstilError: Shapes differ, images are shared, or there are fewer than six different
                ones on either side.
        """
        if source.shape != target.shape:
            raise InstilError(
                f"{source.source} has images of the shape {source.shape}, {target.source} of "
                f"{target.shape}; make them one size and mode first"
            )
        refuse_shared(source.pixels, target.pixels, source.source, target.source)
        facts, sets = {}, []
        for role, images in (("source", source), ("target", target)):
            pixels = some(images, None, seed).pixels
            if len(pixels) < 6:
                raise InstilError(
                    f"{images.source}: {len(pixels)} different images; expected 6 or more, since a "
                    "third of them is held out"
                )
            check_samples(pixels)
            order = Draws.of_range(seed, 0, 0, len(pixels)).uniform(role).argsort()
            cut = len(pixels) // 3
            sets.append((pixels, pixels[order[cut:]], pixels[order[:cut]]))
            facts[role] = {
                "images": images.source,
                "digest": images.digest(),
                "train": len(pixels) - cut,
                "held_out": cut,
            }
        compare_scales(source.pixels, target.pixels, source.source, target.source)
        (whole, *first), (_, *second) = sets
        return cls(whole, (first[0], first[1]), (second[0], second[1]), facts)


def check_settings(sigma: float, nats: float, dim: int | None, features: int) -> None:
    """Refuse settings no report can be made of.

    Raises:
        InstilError: A number is not positive and finite, or the dimension exceeds the features.
    """
    for name, value in (("--sigma", sigma), ("--nats", nats)):
        if not (value > 0 and math.isfinite(value)):
            raise InstilError(f"{name} {value:g}: expected a positive number")
    if dim is not None and not 0 < dim < features:
        raise InstilError(
            f"--dim {dim}: expected 1 to {features - 1}, since an image has {features} values"
        )


def linear_report(domains: Domains, dim: int | None, sigma: float, nats: float) -> dict[str, Any]:
    """Three linear latent spaces of one size on the target.

    Args:
        domains: Source and target.
        dim: Size of the spaces; None takes what both domains need at the tolerance.
        sigma: The lowest noise level a model would run to, data units.
        nats: What a latent space may cost per image.

    Returns:
        `verdict`, `prices`, `angles`, `shared_dimension` and more; every price with its standard
        error.

    Raises:
        InstilError: The size is not possible with these images.
    """
    source, (train, held_out) = domains.source, domains.target_parts
    if dim is not None:  # the error before the work
        reuse.principal_space([source], dim)
    shared = reuse.shared_size(domains.source_parts, domains.target_parts, sigma, nats)
    dim = dim or shared.dim
    if dim is None:
        raise InstilError(
            f"--dim: not given, and no size up to {len(shared.source)} costs both domains less "
            f"than {nats:g} nats from sigma {sigma:g} up; give one, or a larger sigma or tolerance"
        )
    if len(train) < 10 * dim:
        note(f"angles of {dim} directions from {len(train)} images, fewer than 10 each, are rough")
    spaces = reuse.arms(source, train, dim)
    prices = reuse.latent_prices(spaces, source, train, held_out, sigma * SPAN)
    decision = reuse.decide(prices.at(HERE), nats)
    within = reuse.sigma_within(prices.sigmas, prices.nats["reuse"].mean(0), nats)
    arms = {
        arm: _curve(each) | {"noise_aware": _curve(prices.noise_aware[arm])}
        for arm, each in prices.nats.items()
    }
    arms["source model unchanged"] = _curve(prices.unchanged)
    threshold = reuse.relearn_samples(spaces["reuse"], train)
    facts = {
        "verdict": _verdict(decision, dim, sigma, within, nats),
        "prices": {"sigmas": prices.sigmas.tolist(), "arms": arms},
        "angles": _angles(spaces["reuse"], train),
        "shared_dimension": _shared(shared, nats, sigma),
        "reuse_within_tolerance_from_sigma": within,
        "relearning_wins_from_images": None if math.isinf(threshold) else round(threshold),
    }
    return _settings(domains, dim, sigma, nats) | facts


def autoencoder_report(
    domains: Domains,
    autoencoder: Autoencoder,
    name: str,
    sigma: float,
    nats: float,
    device: torch.device,
) -> dict[str, Any]:
    """A frozen autoencoder on the target, beside principal directions relearnt at its size.

    Args:
        domains: Source and target.
        autoencoder: On `device`.
        name: What it is called in the report.
        sigma: The lowest noise level a model would run to, in units of the images.
        nats: What a latent space may cost per image.
        device: Where the autoencoder lies.

    Returns:
        As `linear_report`, the prices by linear denoisers, with `reconstruction`: the squared
        error, the bound on the price, and the noise levels above which it is within tolerance.
    """
    train, held_out = domains.target_parts
    features = train[0].numel()
    rec, rec_held_out, rec_source = (
        reconstruct(autoencoder, each, device=device, label=label)
        for each, label in (
            (train, "target"),
            (held_out, "held out"),
            (domains.source_parts[1], "source"),
        )
    )
    with torch.no_grad():
        dim = autoencoder.encode(floats(train[:1]).to(device)).numel()
    sigmas = sigma * SPAN
    ambient = cross_entropy(fit_gaussian(floats(train)), held_out, sigmas)
    prices = {"reuse": cross_entropy(fit_gaussian(rec), held_out, sigmas) - ambient}
    losses = {"reuse": residuals(held_out, rec_held_out)}
    if dim < min(features, len(train), DENSE + 1):
        space = reuse.principal_space([train], dim)
        law = reuse.latent_gaussian(space, train)
        prices["relearn"] = cross_entropy(law, held_out, sigmas) - ambient
        losses["relearn"] = space.squares(held_out) - space.encode(held_out).square().sum(1)
    decision = reuse.decide({arm: each[:, HERE] for arm, each in prices.items()}, nats)
    within = reuse.sigma_within(sigmas, prices["reuse"].mean(0), nats)
    lost = losses["reuse"]
    verdict = _verdict(decision, dim, sigma, within, nats)
    # Linear denoisers see covariances only: say so where reconstructions alone speak against them.
    bounds = {arm: each.mean().item() / (2 * sigma**2) for arm, each in losses.items()}
    nearest = min(bounds, key=lambda arm: bounds[arm])
    verdict["least_bound"] = nearest
    if nearest != decision.cheapest:
        costs = " and ".join(f"{arm} {bound:.3g}" for arm, bound in bounds.items())
        verdict["sentence"] += f"; the bounds ({costs}) rank them the other way round"
    local = local_angles(autoencoder, train, device=device)
    shared = reuse.shared_size(domains.source_parts, domains.target_parts, sigma, nats)
    facts = {
        "autoencoder": name,
        "verdict": verdict,
        "prices": {
            "sigmas": sigmas.tolist(),
            "arms": {arm: _curve(each) for arm, each in prices.items()},
            "bound": _curve(reconstruction_kl_bound(lost, sigmas)),
        },
        "reconstruction": {
            "source": _spread(residuals(domains.source_parts[1], rec_source)),
            "target": _spread(lost),
            "reuse_sigma": {
                "tolerance": reuse_sigma(lost, nats),
                f"{PER_VALUE:g} nats per value": reuse_sigma(lost, PER_VALUE * features),
            },
        },
        "angles": {
            "degrees": local.radians.rad2deg().tolist(),
            "outside": local.outside.value,
            "outside_stderr": local.outside.stderr,
        },
        "shared_dimension": _shared(shared, nats, sigma),
        "reuse_within_tolerance_from_sigma": within,
    }
    return _settings(domains, dim, sigma, nats) | facts


def table(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows a person reads: every choice at the noise level of use, and half a decade above."""
    curves = dict(facts["prices"]["arms"])
    if "bound" in facts["prices"]:
        curves["bound on reuse"] = facts["prices"]["bound"]
    rows = []
    for name, curve in curves.items():
        row = {"latent space": name, f"nats from sigma {facts['sigma']:g}": _number(curve, HERE)}
        row[f"from {facts['sigma'] * SPAN[ABOVE]:.3g}"] = _number(curve, ABOVE)
        if "autoencoder" not in facts:
            aware = curve.get("noise_aware")
            row["noise-aware"] = _number(aware, HERE) if aware else ""
        rows.append(row)
    return rows


def _number(curve: Mapping[str, Sequence[float]], level: int) -> str:
    return str(Estimate(curve["nats"][level], curve["stderr"][level]))


def _curve(nats: Tensor) -> dict[str, Any]:
    """(N, K) prices as means and standard errors."""
    error = nats.std(0) / math.sqrt(len(nats))
    return {"nats": nats.mean(0).tolist(), "stderr": error.tolist()}


def _spread(lost: Tensor) -> dict[str, float]:
    found = Estimate.of(lost)
    ninety = lost.quantile(0.9).item()
    return {"mean": found.value, "stderr": found.stderr, "percentile_90": ninety}


def _settings(domains: Domains, dim: int, sigma: float, nats: float) -> dict[str, Any]:
    return {**domains.facts, "dim": dim, "sigma": sigma, "nats": nats}


def _angles(space: reuse.Space, train: Tensor) -> dict[str, Any]:
    dim = space.basis.shape[1]
    if 7 * len(train) // 8 <= dim:
        note(f"angles: {len(train)} images of the target are too few for {dim} directions")
        return {"degrees": [], "stderr": []}
    angles, errors = reuse.angle_errors(space, train)
    return {"degrees": angles.rad2deg().tolist(), "stderr": errors.rad2deg().tolist()}


def _shared(shared: reuse.SharedSize, nats: float, sigma: float) -> dict[str, Any]:
    return {
        "dim": shared.dim,
        "low": shared.low,
        "high": shared.high,
        "nats": nats,
        "sigma": sigma,
        "source": {"nats": shared.source.tolist(), "stderr": shared.source_stderr.tolist()},
        "target": {"nats": shared.target.tolist(), "stderr": shared.target_stderr.tolist()},
    }


def _verdict(
    decision: reuse.Decision, dim: int, sigma: float, within: float | None, nats: float
) -> dict[str, Any]:
    """The choice and one sentence with its reason."""
    choice, cheapest = decision.choice, decision.cheapest
    others = [arm for arm in decision.prices if arm != choice]
    costs = " and ".join(f"{arm} {decision.prices[arm]}" for arm in others) or "no other possible"
    dearer = (
        "little enough" if decision.excess[choice].clear else f"not clearly more than {cheapest}"
    )
    reason = "the least" if choice == cheapest else dearer
    where = f"from sigma {within:.2g} up" if within else "at no level looked at"
    sentence = (
        f"{choice}: from sigma {sigma:g} up its {dim} dimensions cost {decision.prices[choice]} "
        f"nats an image, {reason} ({costs}); "
        f"reuse stays within {nats:g} nat{'s' * (nats != 1)} {where}"
    )
    excess = {
        arm: {"nats": each.value, "stderr": each.stderr} for arm, each in decision.excess.items()
    }
    return {"choice": choice, "cheapest": cheapest, "sentence": sentence, "excess": excess}
