"""The benchmarks measure what they say, where the answer is known."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks import long
from benchmarks.authors_loop import AuthorsLoop
from benchmarks.convergence import reached
from benchmarks.harness import paired
from benchmarks.objectives import DIVERGENCES
from distill.__main__ import RECIPES
from distill.divergences import IKL
from distill.recipe import Recipe
from experiments import disjoint, ring, ring_exact
from instil.base import checkpoint
from instil.base.config import load_recipe
from instil.base.draws import Draws
from instil.base.levels import LogNormal, LogUniform
from instructors.adapters.karras import Karras
from instructors.analytic import mixture
from instructors.denoiser import UNCONDITIONAL
from instructors.mlp import MLP
from tests.checks.bounds import lower_bounds
from tests.checks.documented import commands, words
from tests.checks.matrix import counts
from tests.checks.traces import differences, phase


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_an_exact_fake_score_every_divergence_finds_the_ring(name):
    found = ring_exact.distil(DIVERGENCES[name], seed=0, steps=400)
    assert found["w2"] < 0.8
    assert found["modes"] == ring.MODES


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


def test_the_authors_loop_is_nine_forwards_and_two_first_steps_of_adam():
    """Adam's first step is the rate against the sign of the gradient, which is written out here."""
    torch.manual_seed(0)
    instructor = Karras(MLP(2, width=8, depth=1), (2,)).requires_grad_(False)
    loop = AuthorsLoop(instructor, batch=4, lr=1e-3)
    with torch.no_grad():  # else the first gap is nothing
        for parameter in (*loop.fake.parameters(), *loop.student.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    student, fake, average = (copy.deepcopy(m) for m in (loop.student, loop.fake, loop.average))
    counts = Counter()
    networks = {"instructor": instructor, "student": loop.student.denoiser, "fake": loop.fake}
    for name, denoiser in networks.items():
        denoiser.network.register_forward_hook(lambda *_, name=name: counts.update([name]))
    loop.update()
    assert counts == {"student": 2, "fake": 2, "instructor": 1}  # and two backwards, of two each

    draws = Draws.of_range(0, 0, 0, 4)
    x, noisy, sigma = authors_batch(student, draws, 0)
    error = fake(noisy.detach(), sigma) - x.detach()
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2  # EDM's, for data of deviation 1/2
    loss = (weight * error.square().sum(1)).mean()
    stepped(fake, torch.autograd.grad(loss, list(fake.parameters())), loop.fake)
    x, noisy, sigma = authors_batch(student, draws, 1)
    gap = (loop.fake(noisy, sigma) - instructor(noisy, sigma)).detach()
    loss = (gap * x).sum(1).mean()
    stepped(student, torch.autograd.grad(loss, list(student.parameters())), loop.student)
    for before, new, after in zip(
        *(module.parameters() for module in (average, loop.student, loop.average)), strict=True
    ):
        torch.testing.assert_close(after, 0.999 * before + 0.001 * new)


def authors_batch(student, draws, number):
    """The loop's samples number 0 or 1, the same under noise, and the levels."""
    x = student((draws.normal(f"latent-{number}", (2,)),))
    sigma = LogNormal().sample(draws.uniform(f"sigma-{number}").to(x.dtype), 0.002, 80.0)
    return x, x + sigma[:, None] * draws.normal(f"noise-{number}", (2,)), sigma


def stepped(module, gradients, after):
    """Hold a module's first step to the signs of its gradients."""
    for before, gradient, new in zip(
        module.parameters(), gradients, after.parameters(), strict=True
    ):
        clear = gradient.abs() > 1e-5
        assert clear.any()
        expected = before - 1e-3 * gradient.sign()
        torch.testing.assert_close(new[clear], expected[clear], rtol=0, atol=2e-6)


class Unchecked(Karras):
    """Without the check for autocast, which the meta device does not know."""

    def forward(self, noisy, sigma, condition=UNCONDITIONAL):
        return self.denoise(noisy, sigma, condition)


def test_the_authors_loop_runs_where_its_instructor_is():
    loop = AuthorsLoop(Unchecked(MLP(2, width=8, classes=3), (2,), classes=3).to("meta"), batch=4)
    loop.update()
    assert all(parameter.is_meta for parameter in loop.student.parameters())


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
    lines = '{"step": 2, "fd": {"0": 1.0}}\n{"step": 2, "gauges": {}}\n{"st'  # the last was cut
    (run / "metrics.jsonl").write_text(lines)
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


def test_the_oldest_versions_are_the_lower_bounds(tmp_path):
    """An exact version is its own lower bound; upper bounds and other extras do not count."""
    (tmp_path / "setup.cfg").write_text("""
[options]
install_requires =
    # why
    torch >= 2.11, < 3
    torchvision
    torch-fidelity == 0.4.0
[options.extras_require]
tensorboard =
    tensorboard >= 2.19
dev =
    ruff == 0.17.*
    numpy < 3, >= 2
""")
    bounds = ["numpy==2", "ruff==0.17.*", "torch-fidelity==0.4.0", "torch==2.11"]
    assert lower_bounds(tmp_path / "setup.cfg") == bounds


def test_pytests_last_line_is_counted():
    said = "FAILED a - 7 passed\n2 failed, 30 passed, 4 skipped, 9 deselected, 1 error in 3.21s"
    assert counts(said) == {"passed": 30, "failed": 3, "skipped": 4}
    assert counts("1 passed, 2 errors in 0.10s")["failed"] == 2


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


def test_the_interval_of_a_ratio_covers_it():
    """Of 2,000 experiments with three training seeds and three sampling seeds, 95 in a hundred."""
    random = np.random.default_rng(0)
    for spread, noise in ((0.05, 0.01), (0.02, 0.05)):
        students = random.normal(0.9, spread, (2_000, 3))
        instructors = random.normal(0.8, noise, (2_000, 3))
        hits = 0
        for mine, other in zip(students, instructors, strict=True):
            error = other.std(ddof=1) / math.sqrt(3)
            wide = long.interval(mine.tolist(), other.mean(), error, 3)
            hits += abs(mine.mean() / other.mean() - 0.9 / 0.8) < wide
        assert 0.93 < hits / 2_000 < 0.99  # where both vary, Welch's freedom is a little small
