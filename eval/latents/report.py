"""The figures of `eval latents`, as one tree for JSON; every price with its standard error."""

import math
from typing import Any

import torch
from torch import Tensor

from eval.curves import Estimate, cross_entropy
from eval.latents import reuse
from eval.latents.autoencoders import (
    Autoencoder,
    local_angles,
    reconstruct,
    reconstruction_kl_bound,
    residuals,
    reuse_sigma,
)
from eval.latents.domains import Domains
from instil.base.data import floats
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instructors.analytic import DENSE, fit_gaussian

# Noise levels of a report, in units of the lowest level of use: 8 a decade, from 0.1 to 31.6.
RELATIVE_LEVELS = 10.0 ** torch.linspace(-1, 1.5, 21, dtype=torch.float64)
AT_SIGMA, HALF_A_DECADE_ABOVE = 8, 12  # places in them: the level of use is the ninth
NATS_PER_VALUE = 0.01  # the stricter tolerance, for every value of an image


def linear_report(domains: Domains, dim: int | None, sigma: float, nats: float) -> dict[str, Any]:
    """Three linear latent spaces of one size on the target.

    Args:
        domains: Source and target.
        dim: Size of the spaces; None takes the size both domains need at the tolerance.
        sigma: Lowest noise level of use, data units.
        nats: Tolerance: nats an image that a latent space may cost.

    Returns:
        `verdict`, `prices`, `angles`, `shared_dimension` and more.

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
    prices = reuse.latent_prices(spaces, source, train, held_out, sigma * RELATIVE_LEVELS)
    arms = {
        arm: _curve(each) | {"noise_aware": _curve(prices.noise_aware[arm])}
        for arm, each in prices.nats.items()
    }
    arms["source model unchanged"] = _curve(prices.unchanged)
    threshold = reuse.relearn_samples(spaces["reuse"], train)
    facts = {
        "prices": {"sigmas": prices.sigmas.tolist(), "arms": arms},
        "angles": _angles(spaces["reuse"], train),
        "relearning_wins_from_images": None if math.isinf(threshold) else round(threshold),
    }
    return facts | _conclusions(domains, shared, prices.sigmas, prices.nats, dim, sigma, nats)


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
        name: Name of the autoencoder in the report.
        sigma: Lowest noise level of use, in units of the images.
        nats: Tolerance: nats an image that a latent space may cost.
        device: Device of the autoencoder.

    Returns:
        As `linear_report`, the prices by linear denoisers, with `reconstruction`: the squared
        error, the bound on the price, and the noise levels above which it is within tolerance.
    """
    train, held_out = domains.target_parts
    held_out_source, sigmas = domains.source_parts[1], sigma * RELATIVE_LEVELS
    back, back_held_out, back_source = (
        reconstruct(autoencoder, each, device=device, label=label)
        for each, label in (
            (train, "target"),
            (held_out, "held out"),
            (held_out_source, "source"),
        )
    )
    with torch.no_grad():
        dim = autoencoder.encode(floats(train[:1]).to(device)).numel()
    prices, losses = _prices(domains, back, back_held_out, dim, sigmas)
    lost, features = losses["reuse"], train[0].numel()
    local = local_angles(autoencoder, train, device=device)
    shared = reuse.shared_size(domains.source_parts, domains.target_parts, sigma, nats)
    facts: dict[str, Any] = {
        "autoencoder": name,
        "prices": {
            "sigmas": sigmas.tolist(),
            "arms": {arm: _curve(each) for arm, each in prices.items()},
            "bound": _curve(reconstruction_kl_bound(lost, sigmas)),
        },
        "reconstruction": {
            "source": _spread(residuals(held_out_source, back_source)),
            "target": _spread(lost),
            "reuse_sigma": {
                "tolerance": reuse_sigma(lost, nats),
                f"{NATS_PER_VALUE:g} nats per value": reuse_sigma(lost, NATS_PER_VALUE * features),
            },
        },
        "angles": {
            "degrees": local.radians.rad2deg().tolist(),
            "outside": local.outside.value,
            "outside_stderr": local.outside.stderr,
        },
    } | _conclusions(domains, shared, sigmas, prices, dim, sigma, nats)
    _compare_bounds(facts["verdict"], losses, sigma)
    return facts


def _prices(
    domains: Domains, back: Tensor, back_held_out: Tensor, dim: int, sigmas: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Prices (N, K) and squared residuals (N,) of an autoencoder and of relearnt directions."""
    train, held_out = domains.target_parts
    ambient = cross_entropy(fit_gaussian(floats(train)), held_out, sigmas)
    prices = {"reuse": cross_entropy(fit_gaussian(back), held_out, sigmas) - ambient}
    losses = {"reuse": residuals(held_out, back_held_out)}
    if dim < min(train[0].numel(), len(train), DENSE + 1):
        space = reuse.principal_space([train], dim)
        law = reuse.latent_gaussian(space, train)
        prices["relearn"] = cross_entropy(law, held_out, sigmas) - ambient
        losses["relearn"] = space.squares(held_out) - space.encode(held_out).square().sum(1)
    return prices, losses


def _compare_bounds(verdict: dict[str, Any], losses: dict[str, Tensor], sigma: float) -> None:
    """Add to a verdict where reconstructions alone speak against it.

    Linear denoisers, which the verdict goes by, see covariances only.
    """
    bounds = {arm: each.mean().item() / (2 * sigma**2) for arm, each in losses.items()}
    nearest = min(bounds, key=lambda arm: bounds[arm])
    verdict["least_bound"] = nearest
    if nearest != verdict["cheapest"]:
        costs = " and ".join(f"{arm} {bound:.3g}" for arm, bound in bounds.items())
        verdict["sentence"] += f"; the bounds ({costs}) rank them the other way round"


def _conclusions(
    domains: Domains,
    shared: reuse.SharedSize,
    sigmas: Tensor,
    prices: dict[str, Tensor],
    dim: int,
    sigma: float,
    nats: float,
) -> dict[str, Any]:
    """The part both reports share: settings, verdict, shared dimension."""
    decision = reuse.decide({arm: each[:, AT_SIGMA] for arm, each in prices.items()}, nats)
    within = reuse.sigma_within(sigmas, prices["reuse"].mean(0), nats)
    return domains.facts | {
        "dim": dim,
        "sigma": sigma,
        "nats": nats,
        "verdict": _verdict(decision, dim, sigma, within, nats),
        "shared_dimension": _shared(shared, nats, sigma),
        "reuse_within_tolerance_from_sigma": within,
    }


def _curve(nats: Tensor) -> dict[str, Any]:
    """(N, K) prices as means and standard errors."""
    error = nats.std(0) / math.sqrt(len(nats))
    return {"nats": nats.mean(0).tolist(), "stderr": error.tolist()}


def _spread(lost: Tensor) -> dict[str, float]:
    mean, ninety = Estimate.of(lost), lost.quantile(0.9).item()
    return {"mean": mean.value, "stderr": mean.stderr, "percentile_90": ninety}


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
