"""What an update touches, and what it must not."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch._functorch import config

from distill.build import full_copy
from distill.cost.plan import forwards_per_update
from distill.divergences import Divergences
from distill.recipe import FakeScore, Method, Train
from distill.trainer import State, micro_batch, train
from instil.base.config.choice import sections
from instil.base.errors import InstilError
from instil.base.levels import LogNormal
from instructors.adapters.karras import Karras
from students.one_step import OneStep


@pytest.fixture
def setting(unet):
    instructor = Karras(unet(classes=3), (1, 8, 8), classes=3).eval().requires_grad_(False)
    student = OneStep(full_copy(instructor), 2.5)
    with torch.no_grad():  # else the first gap, and with it the first gradient, is exactly zero
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return instructor, student, full_copy(instructor)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("divergence", sections(Divergences))
@pytest.mark.parametrize("levels", [None, LogNormal()])
def test_every_trained_parameter_moves_and_the_instructor_gets_nothing(setting, divergence, levels):
    instructor, student, fake = setting
    method = Method().replace(
        divergence=divergence,
        fake=FakeScore(levels=levels),
        train={"steps": 2, "batch": 12},
    )
    state = State.fresh(student, fake, method)
    frozen = snapshot(instructor)
    before = snapshot(student), snapshot(fake)
    for report in train(state, instructor, method, Accelerator(cpu=True)):
        assert report.norm.isfinite()
    for module, old in zip((student, fake), before, strict=True):
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, old[name]), name
    assert all(torch.equal(value, frozen[name]) for name, value in snapshot(instructor).items())
    assert all(parameter.grad is None for parameter in instructor.parameters())


def test_no_dropout_anywhere(unet):
    network = unet()
    for block in network.modules():
        if isinstance(block, torch.nn.Dropout):
            block.p = 0.9
    instructor = Karras(network, (1, 8, 8))
    fake = full_copy(instructor.train())
    noisy, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    assert torch.equal(fake(noisy, sigma), fake(noisy, sigma))


def count_forwards(method, setting):
    """Forwards and backwards through each network in one update, by hooks."""
    instructor, student, fake = setting
    method = method.replace(train={"steps": 1, "batch": 4})
    state = State.fresh(student, fake, method)
    counts = dict.fromkeys(("instructor", "student", "fake"), 0)
    modules = {"instructor": instructor, "student": student.denoiser, "fake": fake}
    for name, module in modules.items():

        def count(module, arguments, output, name=name):
            counts[name] += 1

        module.network.register_forward_hook(count)
    list(train(state, instructor, method, Accelerator(cpu=True)))
    return counts


@pytest.mark.parametrize(
    ("divergence", "levels", "updates", "expected"),
    [
        ("ikl", None, 1, 7),
        ("sid", None, 1, 9),
        ("ikl", LogNormal(), 1, 8),
        ("dmd", None, 5, 19),
    ],
)
def test_the_number_of_forwards_is_the_one_that_is_reported(
    setting, divergence, levels, updates, expected
):
    fake = FakeScore(levels=levels, updates=updates)
    method = Method().replace(divergence=divergence, fake=fake)
    assert forwards_per_update(method) == expected
    counts = count_forwards(method, setting)
    assert counts["instructor"] == 1
    assert counts["student"] == 1
    assert counts["fake"] == updates + (levels is not None)


def test_a_batch_must_divide():
    with pytest.raises(InstilError, match=r"train.batch: 10 does not divide into 2 process"):
        micro_batch(Method(train=Train(batch=10, accumulation=3)), 2)


def flat(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


COMPILED = {"compile": True}


@pytest.mark.parametrize(
    ("divergence", "keys"),
    [
        ("ikl", {"channels_last": True}),
        ("sid", {"channels_last": True}),
        pytest.param("ikl", COMPILED | {"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param("sid", COMPILED, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_keys_for_speed_leave_the_update_as_it_is(setting, divergence, keys):
    instructor = setting[0]
    with torch.no_grad():  # a gap well above rounding, which Adam would blow up
        for parameter in setting[2].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = []
    for settings in ({}, keys):
        student, fake, mine = (copy.deepcopy(module) for module in (*setting[1:], instructor))
        method = Method().replace(divergence=divergence, train={"steps": 2, "batch": 8} | settings)
        before = flat(student)
        state = State.fresh(student, fake, method)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=method.train.precision or "no")
        losses = [report.losses["student"] for report in train(state, mine, method, accelerator)]
        found.append((torch.stack(losses), flat(student) - before))
        torch.compiler.reset()
    tolerance = 5e-2 if "precision" in keys else 1e-3
    torch.testing.assert_close(found[0][0], found[1][0], rtol=tolerance, atol=tolerance)
    cosine = torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0)
    assert cosine > 0.9 if "precision" in keys else cosine > 0.99


@pytest.mark.parametrize(("kind", "donated"), [("ikl", True), ("sid", False)])
def test_buffers_are_kept_where_a_graph_is_walked_twice_and_only_there(
    setting, monkeypatch, kind, donated
):
    instructor, student, fake = setting
    method = Method().replace(divergence=kind, train={"steps": 2, "batch": 4})
    divergence, seen = type(method.divergence), []
    call = divergence.__call__

    def watched(self, *arguments):
        seen.append(config.donated_buffer)
        return call(self, *arguments)

    monkeypatch.setattr(divergence, "__call__", watched)
    state, before = State.fresh(student, fake, method), config.donated_buffer
    for _ in train(state, instructor, method, Accelerator(cpu=True)):
        assert config.donated_buffer == before
    assert seen == [donated, donated]
