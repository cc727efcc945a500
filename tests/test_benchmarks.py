"""The benchmarks measure what they say, where the answer is known."""

import math

import numpy as np
import pytest
import torch

from benchmarks import disjoint, ring
from benchmarks.authors_loop import AuthorsLoop
from benchmarks.convergence import reached
from benchmarks.harness import paired
from benchmarks.reliability.documented import commands, words
from benchmarks.reliability.traces import differences, phase
from distill.__main__ import RECIPES
from distill.divergences import IKL
from distill.recipe import Recipe
from instil import checkpoint
from instil.config import load_recipe
from instil.draws import Draws
from instil.levels import LogNormal, LogUniform
from instructors.analytic import mixture
from instructors.karras import Karras
from instructors.networks import MLP


def test_gradient_across_a_gap_is_the_closed_form():
    """Weight ds on [1e-12, 25] of s: delta log((e + s1) / (e + s0)), for atoms of variance e."""
    levels = LogUniform(sigma_min=1e-6, sigma_max=5.0)
    whole = math.log(5.0 / 1e-6)  # d log sigma over the range; ds = 2 sigma**2 d log sigma
    for variance in (1e-2, 1e-4):
        found = 2 * whole * disjoint.exact(2.0, levels, 2.0, variance)
        assert found == pytest.approx(2 * math.log((variance + 25) / variance), rel=1e-5)
    mean, error, _ = disjoint.measured(IKL(), LogNormal(), 2.0, 1e-2, 20_000)
    assert abs(mean - disjoint.exact(2.0, LogNormal(), 2.0, 1e-2)) < 4 * error


@pytest.mark.slow
def test_a_gaussian_leaves_a_mode_only_if_levels_join_them():
    """Against the minimum of the integral KL itself, found by quadrature over x and BFGS."""
    law = mixture(
        torch.ones(2).double(),
        torch.tensor([[-3.0], [3.0]]).double(),
        torch.full((2, 1, 1), 0.25).double(),
    )
    assert disjoint.escape(2.0, law) == pytest.approx((2.8478, 0.4163), abs=1e-3)
    mean, variance = disjoint.escape(3.0, law)
    assert abs(mean) < 1e-3
    assert variance > 7
    assert disjoint.remaining(2.5, law) == pytest.approx(0.0218, abs=1e-4)


def test_the_rings_measure_knows_its_own_law_and_a_lost_mode():
    law = ring.law()
    draws = Draws.of_range(5, 0, 0, ring.SAMPLES)
    samples = law.sample(draws.normal("z", (2,)), draws.uniform("k"))
    found = ring.measure(samples, law, seed=0)
    assert found["modes"] == ring.MODES
    assert found["near"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)  # a 2-D Gaussian's 3 sd
    assert found["w2"] < 1.3 * found["floor"]
    lost = samples[torch.cdist(samples, law.means).argmin(1) != 0][:1]
    assert ring.measure(lost.expand(ring.SAMPLES, 2), law, seed=0)["modes"] == 1


def test_when_a_curve_reaches_its_goal():
    steps, curve = np.array([0, 100, 200]), np.array([3.0, 2.0, 1.0])
    assert reached(steps, curve, 1.5) == 150
    assert reached(steps, curve, 3.0) == 0
    assert math.isnan(reached(steps, curve, 0.5))


def test_paired_times_compare_like_with_like(monkeypatch):
    clock, load, order = 0.0, 1.0, []
    monkeypatch.setattr("time.perf_counter", lambda: clock)

    def spend(name, seconds):
        nonlocal clock, load
        order.append(name)
        clock += seconds * load
        load *= 1.01  # a machine that gets busier

    mine, other, ratio = paired(lambda: spend("a", 2.0), lambda: spend("b", 6.0), 8, 1)
    assert order.count("a") == order.count("b") == 9
    assert ratio == pytest.approx(3.0, rel=1e-2)
    assert other / mine == pytest.approx(3.0, rel=5e-2)


def test_the_authors_loop_trains_student_and_fake():
    torch.manual_seed(0)
    loop = AuthorsLoop(Karras(MLP(2, width=8), (2,)).requires_grad_(False), batch=4, lr=1e-3)
    before = [p.clone() for m in (loop.fake, loop.student, loop.average) for p in m.parameters()]
    loop.update()
    loop.update()
    after = [p for m in (loop.fake, loop.student, loop.average) for p in m.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_driver_of_kills_sees_what_is_not_whole_and_where_a_run_was(tmp_path):
    reference, run = tmp_path / "reference", tmp_path / "run"
    words = ["train.steps=2", "evaluation={every: 2, extractor: digits}", "pictures_every=2"]
    recipe = load_recipe(Recipe, "digits", words, RECIPES)
    assert phase(run, recipe) == "before the first checkpoint"
    module = torch.nn.Linear(2, 2)
    for step in range(3):
        for folder in (reference, run):
            checkpoint.save(folder / "checkpoints", step, {"student": module}, {}, {})
    assert differences(run, reference) == []
    assert phase(run, recipe) == "evaluation on the way"
    (run / "metrics.jsonl").write_text('{"step": 2, "fd": {"0": 1.0}}\n{"step": 2, "gauges": {}}\n')
    assert phase(run, recipe) == "final evaluation"
    (run / "report.json").write_text("{}")
    assert phase(run, recipe) == "export"
    (run / "checkpoints" / ".step-00000003.partial").mkdir()
    assert phase(run, recipe) == "save"
    one, two, three = sorted((run / "checkpoints").glob("step-*"))
    (one / "student.safetensors").unlink()  # half deleted
    (two / "student.safetensors").write_bytes((two / "student.safetensors").read_bytes()[:-4])
    (three / checkpoint.META).unlink()
    faults = differences(run, reference)
    for folder, message in ((one, "not the weights"), (two, "not a whole"), (three, "is missing")):
        assert any(str(folder) in fault and message in fault for fault in faults)


def test_a_pages_commands_are_those_of_its_blocks_and_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\npython -m eval fid \\\n    --images 'a b'  # why\n```\n`python -m eval prose`\n"
        "| `./launch.sh digits` | `digits` | `python -m eval … --out p.json` |\n"
        "```python\nimport eval\n```\n"
    )
    found = [*commands(page)]
    assert [words(line) for line in found] == [
        ["eval", "fid", "--images", "a b"],
        ["distill", "digits"],
    ]
    assert words("NUM_PROCESSES=2 ./launch.sh digits") is None  # more than one process
