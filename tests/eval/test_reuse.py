"""Fitted latent spaces and the decision between them, against exact laws and scikit-learn."""

import math

import pytest
import torch
from sklearn.covariance import oas
from sklearn.decomposition import PCA

from eval.curves import cross_entropy
from eval.latents.angles import relearn_threshold
from eval.latents.reuse import (
    Space,
    angle_errors,
    arms,
    decide,
    latent_gaussian,
    latent_prices,
    nested_prices,
    principal_space,
    relearn_samples,
    shared_size,
    sigma_within,
)
from experiments.latents.laws import latent_kl, shared_dimension
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors import analytic
from instructors.analytic import fit_gaussian, gaussian

D, K, TAU = 12, 3, 0.3
ANGLES = torch.tensor([0.2, 0.6, 1.1], dtype=torch.float64)


def spiked(basis, signal=2.0, noise=TAU**2):
    return signal * basis @ basis.mT + noise * torch.eye(len(basis), dtype=torch.float64)


def drawn(covariance, count, seed, mean=0.0):
    law = gaussian(torch.full((len(covariance),), mean, dtype=torch.float64), covariance)
    draws = Draws.of_range(seed, 0, 0, count)
    unit = draws.normal("x", law.shape, torch.float64)
    return law.sample(unit, draws.uniform("component"))


@pytest.fixture
def domains():
    """Covariances of source and target, whose signals lie at the three angles."""
    unit = torch.eye(D, dtype=torch.float64)
    tilted = unit[:, :K] * ANGLES.cos() + unit[:, K : 2 * K] * ANGLES.sin()
    return spiked(unit[:, :K]), spiked(tilted)


def test_the_fitted_gaussian_shrinks_as_scikit_learn_does(domains):
    x = drawn(domains[1], 30, 0, mean=0.5)
    law = fit_gaussian(x)
    covariance = law.directions[0] @ law.variances[0].diag() @ law.directions[0].mT
    torch.testing.assert_close(covariance, torch.from_numpy(oas(x.numpy())[0]))
    torch.testing.assert_close(law.means[0], x.mean(0))


def test_many_features_are_a_leading_part_and_a_tail(monkeypatch, domains):
    x = drawn(domains[1], 400, 0)
    whole = fit_gaussian(x)
    monkeypatch.setattr(analytic, "DENSE", 2)
    part = fit_gaussian(x, rank=3)
    torch.testing.assert_close(part.variances[0], whole.variances[0, :3], rtol=0.02, atol=0)
    assert part.tail.item() == pytest.approx(whole.variances[0, 3:].mean().item(), rel=0.02)
    overlap = part.directions[0].mT @ whole.directions[0, :, :3]
    torch.testing.assert_close(overlap.abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
    exact = cross_entropy(gaussian(torch.zeros(D).double(), domains[1]), x, [0.3])
    assert abs((cross_entropy(part, x, [0.3]) - exact).mean()) < 0.1


def test_a_space_is_the_principal_one(domains):
    x = drawn(domains[0], 200, 0, mean=0.5)
    theirs = PCA(3).fit(x.numpy())
    space = principal_space([x], 3)
    overlap = space.basis.mT @ torch.from_numpy(theirs.components_).mT
    torch.testing.assert_close(overlap.abs(), torch.eye(3, dtype=torch.float64))
    latent = torch.from_numpy(theirs.transform(x.numpy()))
    torch.testing.assert_close(space.encode(x).abs(), latent.abs())
    both = principal_space([x, drawn(domains[1], 100, 1, mean=0.5)], 3)
    assert both.basis.shape == (D, 3)


def test_every_set_weighs_the_same(domains):
    x, y = drawn(domains[0], 4000, 0), drawn(domains[1], 200, 1)
    space = principal_space([x, y], 1)
    covariance = (x - space.offset).mT @ (x - space.offset) / len(x)
    covariance = covariance + (y - space.offset).mT @ (y - space.offset) / len(y)
    leading = torch.linalg.eigh(covariance)[1][:, -1]
    assert abs(leading @ space.basis[:, 0]) == pytest.approx(1)


def test_fitted_prices_are_the_laws_where_samples_abound(domains):
    """With the space given, against the closed form, raw and noise-aware."""
    covariance = domains[1]
    space = Space(torch.eye(D, dtype=torch.float64)[:, :K], torch.zeros(D).double())
    train, held_out = drawn(covariance, 20_000, 0), drawn(covariance, 20_000, 1)
    sigmas = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    prices = latent_prices({"reuse": space}, train[:5000], train, held_out, sigmas)
    for found, noise_aware in ((prices.nats, False), (prices.noise_aware, True)):
        truth = latent_kl(covariance, space.basis, sigmas, noise_aware=noise_aware)
        error = found["reuse"].std(0) / math.sqrt(len(held_out))
        assert ((found["reuse"].mean(0) - truth).abs() < 3 * error + 0.002 * truth).all()
    # the source's own law, here the target's: nothing but estimation
    assert prices.unchanged.mean(0).abs().max() < 0.05


def test_nested_prices_are_those_of_each_size(domains):
    train, held_out = drawn(domains[1], 20_000, 0), drawn(domains[1], 500, 1)
    space = principal_space([train], 6)
    found = nested_prices(space, train, held_out, 0.3)
    ambient = cross_entropy(fit_gaussian(train), held_out, [0.3])[:, 0]
    for m in (1, 3, 6):
        law = latent_gaussian(Space(space.basis[:, :m], space.offset), train)
        one = cross_entropy(law, held_out, [0.3])[:, 0] - ambient
        # the fits shrink differently, but for the whole of them
        torch.testing.assert_close(found[:, m - 1].mean(), one.mean(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[:, -1], one)


def test_the_size_two_domains_share_comes_back_from_samples(domains):
    pairs = [(drawn(each, 20_000, 1), drawn(each, 20_000, 2)) for each in domains]
    sigma, nats = 0.5, 1.0
    exact = shared_dimension(*domains, sigma, nats)
    found = shared_size(*pairs, sigma, nats)
    assert found.dim == exact.dim
    assert found.low <= found.dim <= found.high
    torch.testing.assert_close(found.target, exact.target[:-1], rtol=0.03, atol=0.02)
    assert shared_size(*pairs, 0.05, 1e-9, most=4).dim is None


def test_relearning_pays_from_the_threshold_on(domains):
    covariance = domains[1]
    values = torch.linalg.eigvalsh(covariance).flip(0)
    excess = 2.0 * (ANGLES.sin() ** 2).sum().item()
    space = Space(torch.eye(D, dtype=torch.float64)[:, :K], torch.zeros(D).double())
    found = relearn_samples(space, drawn(covariance, 50_000, 0))
    assert found == pytest.approx(relearn_threshold(values, K, excess), rel=0.03)


def test_a_jackknife_error_is_the_spread_of_repetitions():
    """Of the angle to a line in the plane of the two leading directions."""
    variances = torch.tensor([4.0, 1.0, 0.2], dtype=torch.float64)
    tilted = torch.tensor([[math.cos(0.7)], [math.sin(0.7)], [0.0]], dtype=torch.float64)
    space = Space(tilted, torch.zeros(3).double())
    found = [angle_errors(space, drawn(variances.diag(), 200, seed)) for seed in range(40)]
    angles, errors = (torch.cat(each) for each in zip(*found, strict=True))
    assert angles.mean().item() == pytest.approx(0.7, abs=0.03)
    assert errors.mean().item() == pytest.approx(angles.std().item(), rel=0.3)


def test_the_least_work_within_two_standard_errors():
    noise = torch.linspace(-1, 1, 100, dtype=torch.float64)
    cheap = {"reuse": 1.05 + noise, "mix": 1.0 - noise, "relearn": 1.0 + noise**2 - noise}
    found = decide(cheap)
    assert (found.choice, found.cheapest) == ("reuse", "mix")
    assert found.excess["reuse"].value == pytest.approx(0.05)
    clear = {"reuse": 1.05 + noise, "mix": 1.0 + noise, "relearn": 0.9999 + noise}
    clear["mix"] = clear["mix"] + 0.01 * noise
    assert decide(clear).choice == "mix"
    assert decide(clear).cheapest == "relearn"
    dear = {"reuse": 3 + noise, "relearn": 1 + noise}
    assert decide(dear).choice == decide(dear, tolerance=3.0).choice == "relearn"
    assert decide(dear, tolerance=3.2).choice == "reuse"


def test_where_a_price_falls_below_a_tolerance():
    sigmas = torch.logspace(-1, 1, 5, dtype=torch.float64)
    assert sigma_within(sigmas, sigmas**-2, 1.0) == pytest.approx(1.0)
    assert sigma_within(sigmas, sigmas**-2, 4.0) == pytest.approx(0.5)
    assert sigma_within(sigmas, sigmas**-2, 1000.0) == pytest.approx(0.1)
    assert sigma_within(sigmas, sigmas**-2, 1e-4) is None


def test_too_few_samples_for_a_space(domains):
    x = drawn(domains[0], 5, 0)
    with pytest.raises(InstilError, match="dimension 5: 5 samples of 12 features allow at most 4"):
        principal_space([x], 5)
    with pytest.raises(
        InstilError, match="dimension 13: 40 samples of 12 features allow at most 12"
    ):
        principal_space([drawn(domains[0], 40, 0)], 13)
    assert set(arms(drawn(domains[0], 40, 0), x, 5)) == {"reuse", "mix"}
