"""Distances between laws against closed forms."""

import math

import pytest
import torch
from scipy.stats import norm

from eval.distances import wasserstein2
from experiments.distances import density_distances
from instil.base.errors import InstilError


def test_the_transport_of_a_shift_is_its_length():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    shift = torch.tensor([0.3, -1.2, 0.4])
    moved = (x + shift)[torch.randperm(200, generator=generator)]
    assert wasserstein2(x, moved) == pytest.approx(1.3, rel=1e-6)


def test_the_transport_between_gaussians():
    """Along one axis W2^2 = |difference of means|^2 + (difference of deviations)^2."""
    grid = torch.special.ndtri((torch.arange(2000).double() + 0.5) / 2000)[:, None]
    found = wasserstein2(grid, 3 + 2 * grid.flip(0))
    assert found == pytest.approx(math.sqrt(9 + 1), rel=5e-3)


def test_divergence_and_total_variation_of_shifted_gaussians():
    """N(0, 1) and N(m, 1): m^2/2 nats, and 2 Phi(m/2) - 1."""
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0)).double()
    p, q = (torch.from_numpy(norm.logpdf(x.numpy(), mean)) for mean in (0, 1.5))
    kl, variation = density_distances(p, q)
    assert abs(kl.value - 1.125) < 3 * kl.stderr
    assert abs(variation.value - (2 * norm.cdf(0.75) - 1)) < 3 * variation.stderr
    assert variation.stderr < 0.005
    assert density_distances(p, p) == density_distances(q, q)
    assert density_distances(p, p)[1].value == 0


def test_what_has_no_distance():
    with pytest.raises(InstilError, match=r"shapes \(3, 2\) and \(4, 2\): expected one"):
        wasserstein2(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(InstilError, match=r"shapes \(3,\) and \(2,\): expected one number"):
        density_distances(torch.zeros(3), torch.zeros(2))
