"""What a run says of itself, where that is known exactly, and injected signs of sick runs."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from distill.__main__ import main
from distill.build import build, load_instructor
from distill.recipe import Recipe
from distill.watch.monitors import Gauges, gauge, panels, warnings_of
from eval.curves import Estimate
from instructors.adapters.guidance import Blend
from instructors.analytic import gaussian
from instructors.denoiser import UNCONDITIONAL

MEAN, VARIANCES = torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.2])  # of the student
OTHER, WIDTHS = torch.tensor([0.0, 0.1]), torch.tensor([0.8, 0.4])  # of the instructor


def divergence(s):
    """KL between both laws under noise of variance s, in nats."""
    a, b = VARIANCES.double() + s, WIDTHS.double() + s
    shift = (MEAN - OTHER).double() ** 2
    return 0.5 * ((a + shift) / b - 1 - (a / b).log()).sum().item()


def law(mean, variances):
    return gaussian(mean, variances.diag())


def samples(count):
    unit = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return MEAN + VARIANCES.sqrt() * unit


def test_gauges_of_a_fake_that_knows_the_student():
    found = gauge(samples(4000), UNCONDITIONAL, law(OTHER, WIDTHS), law(MEAN, VARIANCES), 4000)
    low, high = found.sigmas[0], found.sigmas[-1]
    exact = divergence(low**2) - divergence(high**2)
    assert found.nats.stderr < 0.02
    assert abs(found.nats.value - exact) < 3 * found.nats.stderr + 0.01  # a coarse grid of levels
    middle = [t for s, t in zip(found.sigmas, found.tracked, strict=True) if s < 3]
    assert all(abs(each - 1) < 0.25 for each in middle)
    # (1) in closed form at one level: both denoisers are affine
    s = found.sigmas[3] ** 2
    one, two = VARIANCES / (VARIANCES + s), WIDTHS / (WIDTHS + s)
    slope, offset = one - two, (1 - one) * MEAN - (1 - two) * OTHER
    square = slope**2 * (VARIANCES + s) + (slope * MEAN + offset) ** 2
    assert found.distance[3] == pytest.approx(square.mean().sqrt().item(), rel=0.1)


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_the_way_a_fake_has_gone(share):
    given, student = law(OTHER, WIDTHS), law(MEAN, VARIANCES)
    between = Blend([given, student], [[1 - share, share]])
    found = gauge(samples(4000), UNCONDITIONAL, given, between, 4000)
    assert found.way == pytest.approx(share, rel=0.1)
    same = images(0)
    found_signs = warnings_of(same, same, gauges=found)
    assert [sign[:29] for sign in found_signs] == ["lag: the fake score has gone "] * (share < 0.5)


def test_gauges_of_a_fake_that_knows_nothing():
    behind = law(torch.tensor([-2.0, 2.0]), WIDTHS)
    found = gauge(samples(500), UNCONDITIONAL, law(OTHER, WIDTHS), behind)
    assert all(each < 0 for each in found.tracked)
    same = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    (sign,) = warnings_of(same, same, gauges=found)
    assert sign.startswith("lag: ")


def test_panels_hold_both_denoisers_of_one_noise():
    x = samples(5)
    clean, noisy, theirs, ours = panels(x, UNCONDITIONAL, law(OTHER, WIDTHS), law(MEAN, VARIANCES))
    assert torch.equal(clean, x.repeat(3, 1))
    undone = noisy[5:10] * math.sqrt(2)  # the middle level is one
    sigma = torch.ones(5)
    torch.testing.assert_close(theirs[5:10], law(OTHER, WIDTHS)(undone, sigma))
    torch.testing.assert_close(ours[5:10], law(MEAN, VARIANCES)(undone, sigma))


def images(seed, spread=60.0, mean=128.0):
    generator = torch.Generator().manual_seed(seed)
    x = mean + spread * torch.randn(80, 1, 8, 8, generator=generator)
    return x.clamp(0, 255).to(torch.uint8)


def test_a_healthy_run_shows_no_sign():
    good = Gauges((1.0, 2.0), (0.1, 0.1), (0.9, 1.1), Estimate(1.0, 0.1), 0.9)
    falling = [{"10000": value} for value in (3.0, 2.0, 1.0)]
    assert warnings_of(images(0), images(1), falling, good) == []


SICK = {
    "collapse": (
        (images(0, spread=10), images(1)),
        "collapse: the student's images spread by 9.89",
    ),
    "drift": ((images(0, mean=200), images(1)), "drift: "),
    "standstill": ((images(0), images(1), [{"1": 2.0}] * 3), "standstill: 3 measurements"),
}


@pytest.mark.parametrize("case", SICK)
def test_signs_of_sick_runs(case):
    given, start = SICK[case]
    (sign,) = warnings_of(*given)
    assert sign.startswith(start)
    assert "try " in sign


@pytest.mark.slow
def test_a_run_that_begins_collapsed_says_so(tmp_path, capsys):
    recipe = Recipe(name="x", instructor="digits")  # at a high level D(x) is what the network says
    instructor = load_instructor(recipe, torch.device("cpu"))
    student = build(recipe, instructor).student
    nothing = {k: torch.zeros_like(t) for k, t in student.state_dict().items()}
    save_file(nothing, tmp_path / "nothing.safetensors")
    changes = [f"student.init={tmp_path / 'nothing.safetensors'}", f"output={tmp_path}"]
    more = ["name=run", "train.steps=1", "train.batch=8", "pictures_every=1", "student.sigma=80"]
    assert main(["digits", *changes, *more, "evaluation.extractor=null"]) == 0
    assert "step 1: collapse: " in capsys.readouterr().err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    start, record = (r for r in map(json.loads, lines) if "gauges" in r)
    assert (start["step"], start["signs"], record["step"]) == (0, [], 1)  # no start is sick
    assert len(record["gauges"]["tracked"]) == len(record["gauges"]["sigmas"])
    assert (tmp_path / "run" / "denoised" / "step-00000001.png").exists()


def test_a_run_without_pictures_asks_the_instructor_for_none(on_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("distill.watch.pictures.generate", None)  # a call would fail
    monkeypatch.setattr("distill.watch.looks.gauge", None)
    more = ["name=run", "train.steps=1", "train.batch=4", "pictures_every=null"]
    assert main([*on_tiny, *more, "evaluation={extractor: null}"]) == 0
    run = tmp_path / "runs" / "run"
    assert {"report.json", "student"} <= {path.name for path in run.iterdir()}
    assert not {"samples", "denoised"} & {path.name for path in run.iterdir()}
