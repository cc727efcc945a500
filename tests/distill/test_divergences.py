"""Each divergence's gradient against its closed form for Gaussians, in float64."""

import math

import numpy as np
import pytest
import torch

from distill.divergences import DMD, IKL, SIM, Divergences, SiD
from instil.base.config.choice import sections
from instructors.analytic import gaussian

DIM, LATENT = 4, 2


@pytest.fixture
def laws():
    """Instructor N(mu, S); student x = W z + b with its exact law as fake."""
    g = torch.Generator().manual_seed(1)
    root, w = (torch.randn(DIM, n, generator=g, dtype=torch.float64) for n in (DIM, LATENT))
    mu, b = torch.randn(2, DIM, generator=g, dtype=torch.float64)
    s = root @ root.T / DIM + 0.1 * torch.eye(DIM, dtype=torch.float64)
    return gaussian(mu, s), gaussian(b, w @ w.T), mu, s, w, b


def cubature(count):
    """Points with equal weights that integrate quadratics of a standard normal exactly."""
    eye = math.sqrt(count) * torch.eye(count, dtype=torch.float64)
    return torch.cat([eye, -eye])


def gradient(divergence, sample, sigma, noise, instructor, fake):
    """The gradient at the samples, and instructor's and fake's answers there."""
    leaf = sample.clone().requires_grad_()
    noisy = leaf + sigma[:, None] * noise
    t, f = instructor(noisy, sigma), fake(noisy, sigma)
    if not divergence.jacobian:
        t, f = t.detach(), f.detach()
    (found,) = torch.autograd.grad(divergence(leaf, sigma, t, f).sum(), leaf)
    return found, t.detach(), f.detach()


@pytest.mark.parametrize("level", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_ikl_gives_a_linear_student_the_gradient_of_the_integral_kl(laws, level, power):
    instructor, fake, mu, s, w, b = laws
    points = cubature(LATENT + DIM)
    z, noise = points[:, :LATENT], points[:, LATENT:]
    sigma = torch.full((len(points),), level, dtype=torch.float64)
    found, *_ = gradient(IKL(power=power), z @ w.T + b, sigma, noise, instructor, fake)
    p = torch.linalg.inv(s + level**2 * torch.eye(DIM, dtype=torch.float64))
    q = torch.linalg.inv(w @ w.T + level**2 * torch.eye(DIM, dtype=torch.float64))
    torch.testing.assert_close(found.mean(0), level**power * p @ (b - mu))
    torch.testing.assert_close(found.T @ z / len(z), level**power * (p - q) @ w)


def test_that_gradient_is_the_gradient_of_the_kl_divergence(laws):
    instructor, fake, mu, s, w, b = laws
    level = 0.7
    eye = level**2 * torch.eye(DIM, dtype=torch.float64)
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    q, p = w @ w.T + eye, s + eye
    kl = 0.5 * (
        torch.trace(torch.linalg.solve(p, q))
        - DIM
        + (b - mu) @ torch.linalg.solve(p, b - mu)
        + torch.logdet(p)
        - torch.logdet(q)
    )
    by_w, by_b = torch.autograd.grad(kl, (w, b))
    points = cubature(LATENT + DIM)
    z, noise = points[:, :LATENT], points[:, LATENT:]
    sigma = torch.full((len(points),), level, dtype=torch.float64)
    sample = (z @ w.T + b).detach()
    found, *_ = gradient(IKL(power=0), sample, sigma, noise, instructor, fake)
    torch.testing.assert_close(found.mean(0), by_b)
    torch.testing.assert_close(found.T @ z / len(z), by_w)


@pytest.mark.parametrize("level", [0.05, 1.0, 20.0])
def test_dmd_normalises_the_same_gap(laws, level):
    instructor, fake, *_, b = laws
    sample, noise = torch.randn(2, 9, DIM, dtype=torch.float64)
    sigma = torch.full((9,), level, dtype=torch.float64)
    found, t, f = gradient(DMD(), sample + b, sigma, noise, instructor, fake)
    size = (sample + b - t).abs().mean(1, keepdim=True)
    torch.testing.assert_close(found, (f - t) / size)


@pytest.mark.parametrize("level", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_differentiates_through_both_networks(laws, level, alpha):
    instructor, fake, _, s, w, b = laws
    sample, noise = torch.randn(2, 9, DIM, dtype=torch.float64)
    sample = sample + b
    sigma = torch.full((9,), level, dtype=torch.float64)
    found, t, f = gradient(SiD(alpha=alpha), sample, sigma, noise, instructor, fake)
    eye = torch.eye(DIM, dtype=torch.float64)
    jacobian_t = s @ torch.linalg.inv(s + level**2 * eye)  # T = jacobian_t x_s + constant
    jacobian_f = w @ w.T @ torch.linalg.inv(w @ w.T + level**2 * eye)
    gap, pull = t - f, (t - sample) - alpha * (t - f)
    expected = pull @ (jacobian_t - jacobian_f)
    expected = expected + gap @ (jacobian_t - eye - alpha * (jacobian_t - jacobian_f))
    torch.testing.assert_close(found, expected / (sample - t).abs().mean(1, keepdim=True))


def hermite(count):
    """Nodes and weights of expectations over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("level", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("c", [0.5, 1.0, 50.0])
def test_sim_follows_the_gradient_of_its_distance_under_the_students_fixed_law(level, c):
    """d/d theta of E over x_s, held fixed, of d(T - F_theta): what the identity promises."""
    a, b, mean, variance = 0.7, 0.4, -0.3, 1.6
    nodes, weights = hermite(120)
    instructor = gaussian(torch.tensor([mean]).double(), torch.tensor([[variance]]).double())
    fake = gaussian(torch.tensor([b]).double(), torch.tensor([[a**2]]).double())

    theta = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
    fixed = b + (a**2 + level**2) ** 0.5 * nodes
    sigma = torch.full_like(fixed, level)
    gain = theta[0] ** 2 / (theta[0] ** 2 + level**2)
    gap = instructor(fixed[:, None], sigma)[:, 0] - (theta[1] + gain * (fixed - theta[1]))
    distance = ((gap**2 + c**2).sqrt() * weights).sum()
    (expected,) = torch.autograd.grad(distance, theta)

    z, noise = (grid.flatten() for grid in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight = (weights[:, None] * weights).flatten()
    sigma = torch.full_like(z, level)
    found, *_ = gradient(SIM(c=c), (a * z + b)[:, None], sigma, noise[:, None], instructor, fake)
    found = torch.stack([(found[:, 0] * z * weight).sum(), (found[:, 0] * weight).sum()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_sid_with_alpha_one_is_the_released_short_form(laws):
    instructor, fake, *_, b = laws
    sample = torch.randn(9, DIM, dtype=torch.float64) + b
    sigma = torch.full((9,), 0.8, dtype=torch.float64)
    t, f = instructor(sample, sigma), fake(sample, sigma)
    expected = ((t - f) * (f - sample)).sum(1) / (sample - t).abs().mean(1)
    torch.testing.assert_close(SiD(alpha=1)(sample, sigma, t, f), expected)


def test_a_lagging_fake_biases_the_gradient_as_predicted():
    a, lag, b, s = 0.5, 1.5, 1.3, 0.5
    law = lambda v: gaussian(torch.zeros(1).double(), torch.full((1, 1), v).double())  # noqa: E731
    points = cubature(2)
    z, noise = points[:, :1], points[:, 1:]
    sigma = torch.full((4,), s**0.5, dtype=torch.float64)
    sample = a**0.5 * z
    found = [
        (gradient(IKL(power=0), sample, sigma, noise, law(b), law(v))[0] * z).mean().item()
        for v in (lag, a)
    ]
    bias = a**0.5 * (lag - a) / ((lag + s) * (a + s))
    assert found[0] - found[1] == pytest.approx(bias, rel=1e-12)
    # The step points the wrong way exactly when a and the fake's a' lie on either side of b.
    assert found[1] < 0 < found[0]


def test_values_have_one_entry_per_sample_and_images_are_summed_over():
    sample, t, f = torch.randn(3, 5, 2, 4, 4, dtype=torch.float64)
    sigma = torch.rand(5, dtype=torch.float64) + 0.1
    for divergence in (each() for each in sections(Divergences).values()):
        flat = divergence(sample.flatten(1), sigma, t.flatten(1), f.flatten(1))
        torch.testing.assert_close(divergence(sample, sigma, t, f), flat)
        assert flat.shape == (5,)


@pytest.mark.parametrize("divergence", [DMD(), SiD()])
def test_where_the_instructor_changes_nothing_the_distance_is_clipped(divergence):
    sample, fake = torch.randn(2, 3, DIM, dtype=torch.float64)
    leaf = sample.clone().requires_grad_()
    loss = divergence(leaf, torch.ones(3), sample, fake)  # T = x
    (found,) = torch.autograd.grad(loss.sum(), leaf)
    unclipped = {DMD: (fake - sample) / 1e-5, SiD: -(sample - fake) / 1e-5}
    torch.testing.assert_close(found, unclipped[type(divergence)])
