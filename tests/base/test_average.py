"""Exponential moving averages."""

import torch
from torch import nn

from instil.base.average import Average


def test_half_life():
    source = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(source.weight)
    average = Average(source, halflife_images=100, rampup=1e9)
    nn.init.ones_(source.weight)
    for step in range(1, 11):
        average.update(source, images_seen=10 * step, batch=10)
    torch.testing.assert_close(average.module.weight, torch.full((1, 1), 0.5))


def test_rampup_forgets_the_start():
    source = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(source.weight)
    average = Average(source, halflife_images=1e9, rampup=0.05)
    nn.init.ones_(source.weight)
    for step in range(1, 101):
        average.update(source, images_seen=10 * step, batch=10)
    assert average.module.weight.item() > 0.999


def test_buffers_are_copied_and_gradients_are_off():
    source = nn.BatchNorm1d(2)
    average = Average(source, halflife_images=100)
    source(torch.randn(8, 2) + 3)
    average.update(source, 8, 8)
    assert torch.equal(average.module.running_mean, source.running_mean)
    assert torch.equal(average.module.num_batches_tracked, source.num_batches_tracked)
    assert not any(p.requires_grad for p in average.module.parameters())
    assert not average.module.training


def test_zero_half_life_follows_the_source():
    source = nn.Linear(3, 3)
    average = Average(source, halflife_images=0)
    nn.init.normal_(source.weight)
    average.update(source, 10, 10)
    assert torch.equal(average.module.weight, source.weight)
