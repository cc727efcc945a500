"""Randomness as a function of where it is used."""

import pytest
import torch
from scipy import stats

from instil.base.draws import _GOLDEN, Draws, _mix, _signed

SHAPE = (3, 5, 7)


def test_the_hash_is_splitmix64():
    """The first numbers of the published generator from the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = torch.tensor([_signed(1234567 + k * _GOLDEN) for k in (1, 2, 3)])
    assert _mix(states).tolist() == [_signed(number) for number in published]


def test_a_sample_is_the_same_alone_in_a_batch_and_on_another_process():
    whole = Draws.of_range(3, 17, 0, 64).normal("latent", SHAPE)
    for size in (1, 4, 16):
        parts = [Draws.of_range(3, 17, i, size).normal("latent", SHAPE) for i in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)
    shuffled = torch.randperm(64)
    assert torch.equal(Draws(3, 17, shuffled).normal("latent", SHAPE), whole[shuffled])


def test_normal_and_uniform_have_their_laws():
    draws = Draws.of_range(0, 0, 0, 20_000)
    assert stats.kstest(draws.normal("a", (10,)).flatten().numpy(), "norm").pvalue > 1e-3
    uniform = draws.uniform("a", (10,)).flatten().numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert uniform.min() > 0
    assert uniform.max() < 1
    counts = torch.bincount(draws.integers("a", 7))
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("other", "stream"),
    [
        (Draws.of_range(1, 0, 0, 4000), "a"),
        (Draws.of_range(0, 1, 0, 4000), "a"),
        (Draws.of_range(0, 0, 1, 4000), "a"),
        (Draws.of_range(0, 0, 10**9, 4000), "a"),
        (Draws.of_range(0, 0, 0, 4000), "b"),
    ],
)
def test_neighbouring_seeds_steps_samples_and_streams_are_independent(other, stream):
    one = Draws.of_range(0, 0, 0, 4000).normal("a", (8,), torch.float64)
    two = other.normal(stream, (8,), torch.float64)
    correlation = torch.corrcoef(torch.cat([one, two], dim=1).T)
    off_diagonal = correlation - torch.eye(16)
    assert off_diagonal.abs().max() < 5 / 4000**0.5
