"""Noise levels follow their stated laws, truncated."""

import math

import pytest
import torch
from scipy import special, stats

from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.levels import FlowUniform, KarrasUniform, LogitNormal, LogNormal, LogUniform

LOW, HIGH = 0.002, 80.0
UNIFORM = Draws.of_range(0, 0, 0, 20_000).uniform("sigma")


def test_log_normal_is_truncated_not_clamped():
    levels = LogNormal(mean=-1.2, std=1.2)
    wide = levels.sample(UNIFORM, 1e-6, 1e6).log().numpy()
    assert stats.kstest(wide, stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    narrow = levels.sample(UNIFORM, 0.1, 1.0).log().numpy()
    ends = [(math.log(s) + 1.2) / 1.2 for s in (0.1, 1.0)]
    assert stats.kstest(narrow, stats.truncnorm(*ends, -1.2, 1.2).cdf).pvalue > 1e-3


def test_log_uniform_and_its_own_range():
    sigma = LogUniform(sigma_max=20.0).sample(UNIFORM, LOW, HIGH).log().numpy()
    law = stats.uniform(math.log(LOW), math.log(20 / LOW))
    assert stats.kstest(sigma, law.cdf).pvalue > 1e-3


def test_karras_uniform_is_sids_mapping():
    sigma = KarrasUniform(t_min=0.2).sample(UNIFORM, LOW, HIGH)
    t = 1 - (0.2 + 0.8 * UNIFORM)  # SiD's t in [0, 0.8]
    expected = (HIGH ** (1 / 7) + (1 - t) * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma, expected)
    assert sigma.max() == pytest.approx(24.41, abs=0.02)  # a fact about SiD's range


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_are_shifted_times(shift):
    """Times drawn first and shifted second, as arXiv 2403.03206 has it, give the same law."""

    def unshifted(levels):
        sigma = levels.sample(UNIFORM.double(), 1e-9, 1e9)
        time = sigma / (1 + sigma)
        return (time / (shift - (shift - 1) * time)).numpy()  # the inverse of the paper's map

    normal = special.logit(unshifted(LogitNormal(mean=0.3, std=0.8, shift=shift)))
    assert stats.kstest(normal, stats.norm(0.3, 0.8).cdf).pvalue > 1e-3
    uniform = unshifted(FlowUniform(shift=shift))
    assert stats.kstest(uniform, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "levels", [LogNormal(), LogUniform(), KarrasUniform(), LogitNormal(), FlowUniform(shift=3.0)]
)
def test_samples_stay_in_the_networks_range_in_float32(levels):
    extreme = torch.tensor([1e-12, 0.5, 1 - 1e-7])
    sigma = levels.sample(extreme, LOW, HIGH)
    assert sigma.dtype == torch.float32
    assert sigma.isfinite().all()
    assert sigma.min() >= torch.tensor(LOW)
    assert sigma.max() <= torch.tensor(HIGH)


def test_disjoint_ranges_are_refused():
    with pytest.raises(InstilError, match=r"sigma in \[100.0, None\]"):
        LogNormal(sigma_min=100.0).sample(UNIFORM, LOW, HIGH)
