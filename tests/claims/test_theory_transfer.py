"""The claims of the experiments on transfer at reduced size, and the laws they stand on."""

import math

import pytest
import torch
from torch.special import digamma

from eval.curves import Estimate, contributions, denoising_loss_curve, loss_gap
from experiments.__main__ import experiments
from experiments.families import FAMILIES
from experiments.tasks import TAU, Exact, Task, gap
from experiments.transfer.laws import cross_validate, linear_risks
from experiments.transfer.linear import (
    NOISE,
    TARGET,
    D,
    P,
    R,
    drawn,
    embeddings,
    least_squares,
    risks,
    turned,
)
from experiments.transfer.tabular import TABLES
from experiments.transfer.unconditional import mixtures

SCALE = 0.1


@pytest.fixture(scope="module")
def facts():
    """Facts of an experiment at reduced size; sources and targets that it fits are shared."""
    found = {}

    def of(number):
        if number not in found:
            rows, found[number] = experiments()[number].run(SCALE)
            assert rows
        return found[number]

    return of


def test_transfer_beats_scratch_with_few_samples(facts):
    assert facts("000.1")["holds"]


@pytest.mark.slow
def test_so_it_does_with_flows(facts):
    assert facts("000.2")["holds"]


def test_a_rotated_embedding_harms_by_degrees(facts):
    found = facts("000.3")
    many, few = found["diffusion 1000"], found["diffusion 50"]
    assert many["frozen"] == sorted(many["frozen"])
    assert many["frozen"][0] < many["scratch"] < many["frozen"][-1]
    assert few["frozen"][0] < few["frozen"][1] < few["scratch"] < few["frozen"][-1]


def test_cross_validation_decides_as_the_law_does(facts):
    found = facts("000.4")
    assert found["right"] == found["decided"] >= 2
    assert found["200 0"]["said"] == "helps"
    assert found["200 1.57"]["said"] == "harms"


def test_the_gap_predicts_sign_and_size(facts):
    found = facts("000.5")
    assert found["signs"] == found["cells"] == 4
    assert found["slope"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("number", ["000.6", "000.10"])
def test_exact_laws(facts, number):
    assert facts(number)["holds"]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["000.8", "000.9", "000.11"])
def test_other_claims(facts, number):
    assert facts(number)["holds"]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_split_in_two(name):
    table = TABLES[name]()
    x, known, other_x, other = table.tasks()
    assert len(x) + len(other_x) == len(table.x)
    assert len(x) == len(known["context"]) >= 10
    assert len(other_x) == len(other["context"]) >= 10
    # in units of the source's own mean and deviation: nothing of the target is looked at
    for values in (x, known["context"]):
        assert values.mean(0).abs().max() < 1e-4
        assert ((values.std(0, unbiased=False) - 1).abs() < 1e-4).all()


def test_the_gap_of_a_gaussian_task_is_the_closed_form():
    """With a head that undoes the tanh, x is linear in z, and the gap half a log-determinant."""
    angle, slope = 0.7, 0.4
    linear = Task(head=lambda h: slope * h.clamp(-1 + 1e-6, 1 - 1e-6).atanh() / 1.5)
    wanted = math.log(1 + (slope * math.sin(angle) / TAU) ** 2)
    found = gap(angle, outer=2000, inner=4096, task=linear)
    assert abs(found.value - wanted) < 4 * found.stderr + 0.01


def test_excess_is_zero_for_the_law_itself_and_a_gap_of_loss_curves():
    task, other = Task(), Task(0.8)
    measure = FAMILIES["diffusion"].excess
    assert measure(Exact(task), task).value == pytest.approx(0, abs=1e-9)
    x, known = task.sample(2000, seed=99)
    levels = torch.linspace(math.log(0.02), math.log(20), 25).exp()
    curves = [
        denoising_loss_curve(Exact(each), x, levels, condition=known) for each in (other, task)
    ]
    by_losses = Estimate.of(contributions(loss_gap(*curves)))
    found = measure(Exact(other), task)
    # given z both are Gaussians with one variance, so that the KL is known too
    apart = (other.mean(known["context"]) - task.mean(known["context"])).square().sum(1)
    exact = Estimate.of(apart / (2 * TAU**2))
    assert found.value == pytest.approx(exact.value, rel=0.02)
    assert abs(found.value - by_losses.value) < 4 * by_losses.stderr


GOLDEN = {(200, 30): 0.1743, (2000, 30): 0.1168, (2000, 100): 0.0364}
SINES = {100: 0.02264, 400: 0.00472, 2000: 0.00090}


def test_an_embedding_estimated_on_the_source(facts):
    found = facts("000.6")["estimated"]
    for (source, count), law in GOLDEN.items():
        each = found[f"{source} {count}"]
        assert each["law"] == pytest.approx(law, abs=6e-5)
        assert each["simulated"] == pytest.approx(law, abs=3 * each["stderr"] + 0.01 * law)
    for count, excess in ((30, 3.33), (100, 0.380)):
        risk = linear_risks(P, R, D, NOISE, 0.0, count)[1]
        assert (risk - NOISE * D) / (2 * NOISE) == pytest.approx(excess, abs=5e-3)


@pytest.mark.parametrize("source", SINES)
def test_sines_of_an_estimated_embedding(source):
    found = embeddings(source, 400)
    sines = Estimate.of(R - (found.mT @ TARGET).square().sum((1, 2)))
    # the law is of first order: two per cent off for 100 samples
    assert abs(sines.value - SINES[source]) < 3 * sines.stderr + 0.03 * SINES[source]


PICKED = {0: 1.0, 15: 1.0, 20: 0.93, 25: 0.80, 28: 0.70, 31: 0.42, 35: 0.20, 45: 0.005}


@pytest.mark.parametrize("degrees", PICKED)
def test_cross_validation_flips_at_its_own_angle(degrees):
    """Of 60 samples five folds compare the arms at 48, where the critical angle is 30 degrees."""
    source, repeats = turned(math.radians(degrees)), 100
    z, x = drawn(torch.eye(D, R).double(), TARGET, 60, repeats, torch.Generator().manual_seed(3))

    def arm(features):
        def fitted(rows, held_out):
            head = least_squares(features[rows], x[k][rows])
            return (x[k][held_out] - features[held_out] @ head).square().sum(1)

        return fitted

    picked = 0
    for k in range(repeats):
        arms = {"frozen": arm(z[k] @ source), "scratch": arm(z[k])}
        picked += cross_validate(arms, 60, folds=5, seed=k).best == "frozen"
    share = PICKED[degrees]
    error = math.sqrt(max(share * (1 - share), 0.01) * (1 / repeats + 1 / 200))
    assert abs(picked / repeats - share) < 3 * error


def test_the_floor_of_frozen_is_the_gap(facts):
    found = facts("000.6")
    assert found["gap"] < found["KL_at_1000"] < found["gap"] + 0.02
    assert 45 < found["n_neg"] < 46


def test_mixtures_by_counting_parameters():
    """Five parameters of two Gaussians, of which transfer leaves two to the target."""
    found = mixtures(4000, 100, 120)
    for arm, law, simulated in (("transfer", 0.0104, 0.0115), ("scratch", 0.0250, 0.0293)):
        assert found[arm]["law"] == pytest.approx(law, abs=5e-5)
        seen = found[arm]["simulated"]
        assert abs(seen.value - simulated) < 3 * math.hypot(seen.stderr, 0.06 * simulated)


def test_expected_divergence_of_a_gaussian_fit():
    """Full covariance of n samples of known mean, the maximum of a linear flow's likelihood."""
    count, size = 20, 3
    psi = sum(digamma(torch.tensor((count - i + 1) / 2).double()) for i in range(1, size + 1))
    law = 0.5 * (count * size / (count - size - 1) - size + psi + size * math.log(2 / count))
    assert float(law) == pytest.approx(0.216188, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4000, count, size, generator=generator, dtype=torch.float64)
    fitted = y.mT @ y / count
    trace = torch.linalg.inv(fitted).diagonal(dim1=1, dim2=2).sum(1)
    seen = Estimate.of((trace - size + torch.logdet(fitted)) / 2)
    assert abs(seen.value - law) < 3 * seen.stderr


def test_expected_divergence_of_a_regression_of_unknown_variance():
    count, length = 40, 5
    share = length / (count - length - 1)
    psi = digamma(torch.tensor((count - length) / 2).double()).item()
    tail = count * (1 + share) / (count - length - 2)
    law = 0.5 * (psi + math.log(2 / count) + tail - 1)
    assert law == pytest.approx(0.11400, abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6000, count, length, generator=generator, dtype=torch.float64)
    x = torch.randn(6000, count, 1, generator=generator, dtype=torch.float64)
    head = least_squares(z, x)
    variance = (x - z @ head).square().mean((1, 2))
    off = head.square().sum((1, 2))
    seen = Estimate.of(((1 + off) / variance - 1 + variance.log()) / 2)
    assert abs(seen.value - law) < 3 * seen.stderr


def test_risks_are_infinite_where_least_squares_are_not():
    found, _ = risks(torch.eye(D, R).double(), TARGET, P, 5)
    assert found[:, 1].isinf().all()
    assert found[:, 0].isfinite().all()
