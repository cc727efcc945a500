"""Loss curves and their gaps against quadrature, closed forms and the identities they stand on."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import norm

from eval.curves import (
    Estimate,
    LossCurve,
    cross_entropy,
    denoising_loss_curve,
    gaussian_loss_curve,
    integrate_gap,
    loss_gap,
)
from eval.image_sets import compare_scales, distinct
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.analytic import empirical, fit_gaussian, gaussian, mixture
from instructors.denoiser import Condition, Denoiser

# two mixtures on the line: weights, means, variances
P = ([0.3, 0.7], [-1.5, 1.0], [0.2, 0.4])
Q = ([0.5, 0.5], [-1.0, 2.0], [0.5, 0.3])
X = np.linspace(-120, 120, 24001)


def density(law, s):
    return sum(w * norm.pdf(X, m, math.sqrt(v + s)) for w, m, v in zip(*law, strict=True))


def posterior_mean(law, s):
    parts = [
        w * norm.pdf(X, m, math.sqrt(v + s)) * (m + v / (v + s) * (X - m))
        for w, m, v in zip(*law, strict=True)
    ]
    # Far out both underflow, and the mean of 0 / 0 is weighted by a density of 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(sum(parts) / density(law, s))


def kl(s):
    p, q = density(P, s), density(Q, s)
    with np.errstate(invalid="ignore", divide="ignore"):
        return trapezoid(np.where(p > 1e-290, p * (np.log(p) - np.log(q)), 0.0), X)


def gap(s):
    return trapezoid(density(P, s) * (posterior_mean(P, s) - posterior_mean(Q, s)) ** 2, X)


def line(law, **sigmas):
    w, m, v = (torch.tensor(each, dtype=torch.float64) for each in law)
    return mixture(w, m[:, None], v[:, None, None], **sigmas)


def samples_of(law, count, seed=0):
    draws = Draws.of_range(seed, 0, 0, count)
    unit = draws.normal("x", law.shape, torch.float64)
    return law.sample(unit, draws.uniform("component"))


def test_a_loss_gap_is_the_squared_distance_of_denoisers():
    """Identity (1), at the golden value 0.1105."""
    assert gap(0.3) == pytest.approx(0.1105, abs=1e-5)
    x = samples_of(line(P), 20_000)
    sigmas = [math.sqrt(0.3), 1.0]
    found = loss_gap(*(denoising_loss_curve(line(law), x, sigmas) for law in (Q, P)))
    for k, s in enumerate((0.3, 1.0)):
        assert abs(found.mean()[k] - gap(s)) < 3 * found.stderr()[k]
        assert found.stderr()[k] < 0.02 * gap(s)


def test_the_kl_falls_at_the_rate_of_the_gap():
    """The derivative behind identity (2), at the golden value -0.613902."""
    slope = (kl(0.3001) - kl(0.2999)) / 2e-4
    assert slope == pytest.approx(-gap(0.3) / (2 * 0.3**2), rel=1e-5)
    assert slope == pytest.approx(-0.613902, abs=1e-6)


def test_an_integrated_gap_is_a_kl():
    """Identity (2), at the golden value 0.22951: from quadrature and from samples."""
    low, high = math.sqrt(0.3), 20.0
    sigmas = torch.logspace(math.log10(low), math.log10(high), 60, dtype=torch.float64)
    sigmas[0] = low
    truth = torch.tensor([gap(s**2) for s in sigmas.tolist()])
    exact = LossCurve(sigmas, truth.expand(2, -1), "quadrature")
    assert kl(0.3) == pytest.approx(0.22951, abs=1e-5)
    assert integrate_gap(exact).value == pytest.approx(kl(0.3) - kl(high**2), rel=2e-3)
    x = samples_of(line(P), 4000, seed=1)
    measured = loss_gap(*(denoising_loss_curve(line(law), x, sigmas[::2]) for law in (Q, P)))
    found = integrate_gap(measured)
    assert found.stderr < 0.03 * kl(0.3)
    assert abs(found.value - kl(0.3)) < 3 * found.stderr


def test_the_ends_of_an_integral_lie_anywhere_inside():
    sigmas = torch.logspace(-1, 1, 41, dtype=torch.float64)
    # gap = sigma^2: the integrand in log sigma is 1, which the trapezoid rule integrates exactly
    curve = LossCurve(sigmas, (sigmas**2).expand(3, -1), "made up")
    assert integrate_gap(curve).value == pytest.approx(math.log(100), rel=1e-12)
    assert integrate_gap(curve, 0.123, 4.56).value == pytest.approx(math.log(4.56 / 0.123), 1e-12)
    assert integrate_gap(curve, 0.2, 0.201).value == pytest.approx(math.log(0.201 / 0.2), 1e-9)
    for low, high in [(0.05, 1.0), (1.0, 20.0), (2.0, 1.0)]:
        with pytest.raises(InstilError, match=r"leaves the curve, which runs from 0\.1 to 10"):
            integrate_gap(curve, low, high)


@pytest.fixture
def cloud():
    """Samples of five features, and a Gaussian that is not their law."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    root = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    return 0.5 + x @ root, gaussian(torch.full((5,), 0.2).double(), root.mT @ root * 0.7)


def codelength(x, mean, covariance, s):
    """E_n of -log N(x + sqrt(s) n; mean, covariance + s), without the constant."""
    total = covariance + s * torch.eye(len(mean), dtype=torch.float64)
    apart = x - mean
    square = (apart @ torch.linalg.inv(total) * apart).sum(1)
    return 0.5 * (square + s * torch.linalg.inv(total).trace() + torch.logdet(total))


def covariance_of(law):
    v = law.directions[0]
    inside = v @ torch.diag(law.variances[0] - law.tail[0]) @ v.mT
    return inside + law.tail[0] * torch.eye(len(v), dtype=torch.float64)


def test_a_loss_itself_integrates_to_the_kl_of_every_sample(cloud):
    """Identity (3): E_x KL(N(x, s) || v_s), in closed form at both ends of the integral."""
    x, law = cloud
    low, high = 0.3, 30.0
    sigmas = torch.logspace(math.log10(low), math.log10(high), 800, dtype=torch.float64)
    found = integrate_gap(gaussian_loss_curve(law, x, sigmas)).value
    ends = []
    for s in (low**2, high**2):
        entropy = 0.5 * 5 * (math.log(s) + 1)
        ends.append((codelength(x, law.means[0], covariance_of(law), s) - entropy).mean())
    assert found == pytest.approx((ends[0] - ends[1]).item(), rel=1e-4)


def test_averaging_the_noise_exactly_is_averaging_the_noise(cloud):
    x, law = cloud
    exact = gaussian_loss_curve(law, x, [0.3, 1.0, 3.0])
    drawn = denoising_loss_curve(law, x, [0.3, 1.0, 3.0], noise_draws=2000)
    torch.testing.assert_close(drawn.losses, exact.losses, rtol=0.15, atol=0)
    torch.testing.assert_close(drawn.mean(), exact.mean(), rtol=0.02, atol=0)


def test_the_integral_to_infinity_of_two_gaussians_is_closed(cloud):
    x, law = cloud
    other = fit_gaussian(x)
    found = (cross_entropy(law, x, [0.3]) - cross_entropy(other, x, [0.3]))[:, 0]
    one, two = (codelength(x, each.means[0], covariance_of(each), 0.09) for each in (law, other))
    torch.testing.assert_close(found, one - two)
    sigmas = torch.logspace(math.log10(0.3), 3, 1500, dtype=torch.float64)
    curve = loss_gap(*(gaussian_loss_curve(each, x, sigmas) for each in (law, other)))
    assert integrate_gap(curve).value == pytest.approx(found.mean().item(), rel=1e-4)


@pytest.mark.parametrize("horizon", [0.5, 1.5, 5.0, 50.0, 5000.0])
def test_the_gap_bounds_what_a_reverse_sde_generates(horizon):
    """Identity (4) on Gaussians, where the linear SDE is solved: data N(m, v), model N(n, k)."""
    m, v, n, k, low = 0.7, 1.5, 0.2, 0.9, 0.05
    t, e = horizon**2, low**2

    def normal_kl(mean, var, mean2, var2):
        return 0.5 * (var / var2 + (mean - mean2) ** 2 / var2 - 1 - math.log(var / var2))

    shrink = (k + e) / (k + t)  # of a deviation on the way from T down to e
    generated = (n + shrink * (0 - n), (k + e) + shrink**2 * (t - (k + t)))
    exact = normal_kl(m, v + e, *generated)
    sigmas = torch.logspace(math.log10(low), math.log10(horizon), 4000, dtype=torch.float64)
    sigmas[0], sigmas[-1] = low, horizon
    s = sigmas**2
    # D - D* is linear: at x_s = m + y, y ~ N(0, v + s)
    slope, constant = k / (k + s) - v / (v + s), (1 - k / (k + s)) * (n - m)
    curve = (slope**2 * (v + s) + constant**2).expand(2, -1)
    bound = normal_kl(m, v + t, 0, t) + integrate_gap(LossCurve(sigmas, curve, "exact")).value
    assert bound >= exact - 1e-6
    if horizon > 1000:  # D is the denoiser of a law: the bound is attained
        assert bound == pytest.approx(exact, rel=1e-3)


class Labelled(Denoiser):
    """Denoises to a constant per label, and records what it was called with."""

    shape, sigma_min, sigma_max, classes = (2,), 0.01, 100.0, 3

    def denoise(self, noisy, sigma, condition):
        return condition["label"][:, None].to(noisy) * torch.ones_like(noisy)


def test_conditions_follow_their_samples_and_batches_do_not_matter():
    labels = torch.tensor([0, 1, 2, 1, 0])
    x = torch.arange(10.0).view(5, 2)
    parts = [
        denoising_loss_curve(
            Labelled(), x, [0.1, 1.0], condition=Condition(label=labels), batch=batch
        )
        for batch in (2, 5)
    ]
    truth = (x - labels[:, None]).square().sum(1).double()
    assert torch.equal(parts[0].losses, truth[:, None].expand(-1, 2))
    law = empirical(x)
    curves = [denoising_loss_curve(law, x, [0.1, 1.0], batch=batch) for batch in (2, 5)]
    torch.testing.assert_close(curves[0].losses, curves[1].losses)


def test_images_are_measured_as_a_network_sees_them():
    pixels = torch.randint(0, 256, (6, 1, 2, 2), dtype=torch.uint8)
    law = gaussian(torch.zeros(1, 2, 2), torch.eye(4) * 0.3)
    curves = [
        denoising_loss_curve(law, each, [0.1, 1.0]) for each in (pixels, pixels.float() / 127.5 - 1)
    ]
    torch.testing.assert_close(curves[0].losses, curves[1].losses)


def test_a_standard_error_is_of_the_mean():
    found = Estimate.of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3
    assert found.stderr == pytest.approx(math.sqrt(14 / 3 / 4))
    assert found.clear
    assert not Estimate(1.0, 0.6).clear


def test_a_gap_needs_one_noise():
    x = torch.randn(6, 2)
    law, sigmas = empirical(x), [0.1, 1.0]
    first = denoising_loss_curve(law, x, sigmas)
    for other in (
        denoising_loss_curve(law, x, sigmas, seed=1),
        denoising_loss_curve(law, x, sigmas, noise_draws=2),
        denoising_loss_curve(law, x, [0.1, 2.0]),
        denoising_loss_curve(law, x + 1, sigmas),
        gaussian_loss_curve(fit_gaussian(x), x, sigmas),
    ):
        with pytest.raises(InstilError, match="cannot be subtracted"):
            loss_gap(first, other)


class Broken(Labelled):
    classes = 0

    def __init__(self, output):
        super().__init__()
        self.output = output

    def denoise(self, noisy, sigma, condition):
        return self.output(noisy, sigma)


FINE = torch.arange(8.0).view(4, 2)


@pytest.mark.parametrize(
    ("samples", "sigmas", "message"),
    [
        (FINE, [1.0], "expected two or more"),
        (FINE, [1.0, 0.5], "positive, finite and rising"),
        (FINE, [0.0, 1.0], "positive, finite and rising"),
        (FINE, [1.0, float("inf")], "positive, finite and rising"),
        (FINE, [0.001, 1.0], r"leave the denoiser's own range \[0\.01, 100\]"),
        (FINE[:1], [0.1, 1.0], "expected at least 2, got 1"),
        (FINE[:1].expand(3, -1), [0.1, 1.0], "all 3 are equal"),
        (torch.cat([FINE, FINE[:1] * torch.nan]), [0.1, 1.0], "not finite; remove"),
    ],
)
def test_what_no_loss_can_be_measured_on(samples, sigmas, message):
    with pytest.raises(InstilError, match=message):
        denoising_loss_curve(Broken(lambda noisy, sigma: noisy), samples, sigmas)


def test_outputs_that_are_no_denoised_samples():
    with pytest.raises(ValueError, match=r"made \(4, 1\) of \(4, 2\)"):
        denoising_loss_curve(Broken(lambda noisy, sigma: noisy[:, :1]), FINE, [0.1, 1.0])
    broken = Broken(lambda noisy, sigma: noisy / (sigma < 0.5)[:, None])
    with pytest.raises(InstilError, match="not finite at sigma 1;"):
        denoising_loss_curve(broken, FINE, [0.1, 1.0])


def test_repeated_samples_and_other_scales_are_seen(capsys):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    assert distinct(x).tolist() == [0, 1]
    compare_scales(x, x / 2, "source", "target")
    assert capsys.readouterr().err == ""
    compare_scales(x, x / 127.5, "source", "target")
    assert "are both on one value range?" in capsys.readouterr().err
