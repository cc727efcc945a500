"""Transfer: exact laws of the linear case against simulation, arms, and the comparison of arms."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from eval.cross_fitting import Losses
from eval.curves import LossCurve, contributions, gaussian_loss_curve, noise_levels
from eval.transfer.compare import Comparison, embedding_gap, verdict
from eval.transfer.cross_validate import CrossValidation
from eval.transfer.plot import transfer_curves
from experiments.transfer.laws import (
    cross_validate,
    jacobian_angles,
    linear_gap,
    linear_risks,
    lost_signal,
    turning_point,
)
from instil.base.data import Images
from instil.base.early_stopping import EarlyStopping
from instil.base.errors import InstilError
from instructors.adapters.karras import Karras
from instructors.analytic import fit_gaussian
from instructors.denoiser import Condition
from instructors.load import load
from instructors.mlp import MLP, perceptron
from instructors.transfer import ARMS
from instructors.transfer.adapt import Target
from instructors.transfer.arms import Transfer, begin, embedding, fit, trunk
from instructors.transfer.heads import blank, relabelled

P, R, D, NOISE = 20, 2, 3, 0.25


def bases(first, second):
    """B_t and B_s with these principal angles."""
    target, source = torch.zeros(2, P, R, dtype=torch.float64)
    target[0, 0] = target[1, 1] = 1
    for column, angle in enumerate((first, second)):
        source[column, column] = math.cos(angle)
        source[column + 2, column] = math.sin(angle)
    return target, source


def least_squares(head, target, source, count, repeats, seed=0):
    """Mean out-of-sample risks of frozen and scratch over draws of a data set, and their errors."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(repeats, 2, dtype=torch.float64)
    truth = target @ head.mT
    for repeat in range(repeats):
        z = torch.randn(count, P, generator=generator, dtype=torch.float64)
        noise = torch.randn(count, D, generator=generator, dtype=torch.float64)
        x = z @ truth + NOISE**0.5 * noise
        frozen = source @ torch.linalg.lstsq(z @ source, x).solution
        scratch = torch.linalg.lstsq(z, x).solution
        for k, fitted in enumerate((frozen, scratch)):
            found[repeat, k] = (fitted - truth).square().sum() + D * NOISE
    return found.mean(0), found.std(0) / math.sqrt(repeats)


@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.2, 0.4), (0.8, 1.2)])
@pytest.mark.parametrize("count", [30, 60])
def test_risks_of_least_squares(angles, count):
    head = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, -1.1]], dtype=torch.float64)
    target, source = bases(*angles)
    lost = lost_signal(head, target, source).trace().item()
    exact = torch.tensor(linear_risks(P, R, D, NOISE, lost, count), dtype=torch.float64)
    seen, error = least_squares(head, target, source, count, repeats=800)
    assert ((seen - exact).abs() < 3.5 * error).all()


def test_golden_risks():
    assert linear_risks(P, R, D, NOISE, 0.0, 30) == pytest.approx((0.80556, 2.41667), abs=1e-5)
    assert linear_risks(P, R, D, NOISE, 0.26141, 30)[0] == pytest.approx(1.08632, abs=2e-5)
    assert linear_risks(P, R, D, NOISE, 0.26141, 60) == pytest.approx((1.04689, 1.13462), abs=1e-5)
    frozen, scratch = linear_risks(P, R, D, NOISE, 1.577, 30)
    assert frozen == pytest.approx(2.4991, abs=1e-3)
    assert frozen > scratch
    assert linear_risks(P, R, D, NOISE, 0.0, P + 1)[1] == math.inf


def test_transfer_turns_negative_where_both_risks_are_equal():
    for lost in (0.2, 1.0, 3.0):
        where = turning_point(P, R, D, NOISE, lost)
        below, above = (linear_risks(P, R, D, NOISE, lost, n) for n in (int(where), int(where) + 1))
        assert below[0] <= below[1]
        assert above[0] > above[1]
    assert turning_point(P, R, D, NOISE, 0.0) == math.inf
    assert turning_point(P, R, D, NOISE, 1.5) == pytest.approx(30)
    # the angle at which so many samples are the turning point, both angles being the same
    for degrees, count in ((24.58, 60), (30.0, 48)):
        source = bases(math.radians(degrees), math.radians(degrees))
        lost = lost_signal(torch.eye(D, R, dtype=torch.float64), *source).trace().item()
        assert turning_point(P, R, D, NOISE, lost) == pytest.approx(count, abs=0.05)


def test_gap_is_the_integral_of_the_losses_difference():
    # x given h is N(., tau^2 I + C S C'), given z N(., tau^2 I): both losses are known
    head = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, -1.1]], dtype=torch.float64)
    lost = lost_signal(head, *bases(0.5, 0.9))
    s = torch.linspace(math.log(1e-10), math.log(1e10), 20_001, dtype=torch.float64).exp()[:, None]
    mmse = lambda variances: (variances * s / (variances + s)).sum(1)  # noqa: E731
    blind, seeing = torch.linalg.eigvalsh(lost) + NOISE, torch.full((D,), NOISE).double()
    integrand = (mmse(blind) - mmse(seeing)) / (2 * s[:, 0])
    assert linear_gap(lost, NOISE) == pytest.approx(
        torch.trapezoid(integrand, s[:, 0].log()).item(), rel=1e-6
    )


def test_jacobians_find_the_angles():
    target, source = bases(0.3, 0.8)
    task = lambda basis: lambda z: torch.tanh(z @ basis) @ torch.ones(R, D).double().triu()  # noqa: E731
    z = torch.randn(200, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jacobian_angles(task(target), task(source), z, R)
    assert found.tolist() == pytest.approx([0.3, 0.8], abs=1e-9)


def test_comparison_knows_sign_and_doubt():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)
    parts = list(torch.arange(200).chunk(5))
    for shift, negative, undecided, word in (
        (1.0, True, False, "Do not transfer"),
        (-1.0, False, False, "Transfer by frozen"),
        (0.0, False, True, "Undecided"),
    ):
        nats = {"scratch": base, "frozen": base + shift + noise - noise.mean()}
        found = Comparison(nats, parts)
        assert (found.negative_transfer, found.undecided) == (negative, undecided)
        assert found.less("frozen", "scratch").value == pytest.approx(shift)
        assert word in verdict(found)


def test_the_gap_is_frozen_less_the_best_that_learns_its_embedding(tmp_path):
    generator = torch.Generator().manual_seed(0)
    levels, parts = noise_levels(0.1, 10), list(torch.arange(40).chunk(4))
    base = torch.rand(40, len(levels), generator=generator, dtype=torch.float64)
    losses = {
        arm: Losses(*[LossCurve(levels, base + shift, "x")] * 2)
        for arm, shift in (("scratch", 1.0), ("frozen", 0.5), ("finetune", 0.2))
    }
    nats = {arm: contributions(each.model) for arm, each in losses.items()}
    compared = Comparison(nats, parts)
    assert compared.seeing == "finetune"
    assert compared.gap.value == pytest.approx((nats["frozen"] - nats["finetune"]).mean().item())
    images = Images(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), None, (), "zeros")
    target = Target(images, images.pixels, Condition(), 0)
    result = CrossValidation(
        compared, losses, {arm: [3] for arm in nats}, dict.fromkeys(nats, 1.0), target, "p"
    )
    answer = result.answer()
    assert answer.rows[-1]["arm"] == "embedding gap: frozen less finetune"
    assert answer.facts["embedding_gap"]["value"] == compared.gap.value
    transfer_curves(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert Comparison({"scratch": nats["scratch"]}, parts).gap is None


def test_folds_that_disagree_are_doubt():
    # each fold's model is off by its own amount, by far more than samples differ within a fold
    parts = list(torch.arange(500).chunk(5))
    nats = torch.zeros(500, dtype=torch.float64)
    for rows, shift in zip(parts, (3.0, -2.0, 2.5, -2.5, 1.0), strict=True):
        nats[rows] = shift
    found = Comparison({"scratch": torch.zeros(500).double(), "frozen": nats}, parts)
    assert found.undecided
    assert found.less("frozen", "scratch").stderr > 1


def test_every_sample_is_scored_by_a_model_that_has_not_seen_it():
    labels = torch.arange(40) % 4
    seen: list[tuple[set[int], set[int]]] = []

    def arm(rows, held_out):
        seen.append((set(rows.tolist()), set(held_out.tolist())))
        assert (labels[held_out].bincount(minlength=4) == 1).all()
        return held_out.double()

    found = cross_validate({"scratch": arm}, 40, folds=10, strata=labels)
    assert torch.equal(found.nats["scratch"], torch.arange(40).double())
    assert all(not a & b and len(a | b) == 40 for a, b in seen)
    assert len(seen) == 10


def model(classes=0, seed=0):
    torch.manual_seed(seed)
    network = MLP(2, width=16, depth=1, context=3, embed=perceptron(4, 8, 3))
    denoiser = Karras(network, (2,), 0.02, 20.0, 1.0)
    denoiser.text = ("context",)
    return denoiser


@pytest.mark.parametrize("arm", ARMS)
def test_arms_start_and_train_as_they_say(arm):
    source = model(seed=1)
    before = copy.deepcopy(source.state_dict())
    started, penalty = begin(arm, source, lambda: model(seed=2), embedding, kappa=0.5)
    named = {k.replace(".base_layer", ""): t for k, t in started.state_dict().items()}
    same = [torch.equal(t, before[k]) for k, t in named.items() if k in before]
    assert len(same) == len(before)
    assert all(same) is (arm != "scratch")
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(30, 2, generator=generator), torch.randn(30, 4, generator=generator)
    recipe = Transfer(steps=8, batch=16, stopping=None)
    kept = {k: p.detach().clone() for k, p in started.named_parameters()}
    fit(started, x, Condition(context=z), recipe, Accelerator(cpu=True), penalty)
    moved = {k: not torch.equal(p, kept[k]) for k, p in started.named_parameters()}
    held = arm in ("frozen", "lora")
    for name, parameter in started.named_parameters():
        stays = held and embedding(name, parameter) and ".lora_" not in name
        assert moved[name] is not stays, name
    if penalty is not None:  # kappa times the squared distance to the source's embedding
        pairs = [(p, before[k]) for k, p in started.named_parameters() if embedding(k, p)]
        assert penalty().item() == pytest.approx(
            0.5 * sum((p - q).square().sum().item() for p, q in pairs)
        )
    assert all(torch.equal(t, before[k]) for k, t in source.state_dict().items())


def test_early_stopping_keeps_the_least_loss():
    module = nn.Linear(1, 1, bias=False)
    path = [4.0, 3.0, 2.0, 1.0, 2.0, 0.5, 3.0, 3.0, 3.0, 0.1]

    def updates():
        for value in path[1:]:
            with torch.no_grad():
                module.weight.fill_(value)
            yield

    def loss():
        return module.weight.item()

    for patience, kept in ((1, 1.0), (2, 0.5), (4, 0.1)):
        with torch.no_grad():
            module.weight.fill_(path[0])
        step, least = EarlyStopping(every=1, patience=patience).run(module, updates(), loss)
        assert least == pytest.approx(kept)
        assert module.weight.item() == pytest.approx(kept)
        assert path[step] == pytest.approx(kept)


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.2, 1), (10, 0.2, 2), (3, 0.99, 2)])
def test_early_stopping_leaves_samples_on_both_sides(count, share, held):
    seen, deciding = EarlyStopping(share=share).split(count, seed=0)
    assert len(deciding) == held
    assert sorted([*seen.tolist(), *deciding.tolist()]) == list(range(count))


def test_one_sample_cannot_decide_when_to_stop():
    with pytest.raises(InstilError, match=r"stopping: 1 sample\(s\) cannot be split"):
        EarlyStopping().split(1, seed=0)


@pytest.mark.parametrize("classes", [0, 3, 5])
def test_relabelled_source_is_the_source_under_its_mean_class(classes):
    source = load("digits-0-4").denoiser
    target = relabelled(source, classes)
    noisy, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7)
    label = torch.tensor([0, 1, 2, 0])
    found = target(noisy, sigma, Condition(label=label) if classes else Condition())
    expected = copy.deepcopy(source)
    if classes != 5:
        table = expected.network.class_embedding.weight
        table.data[:] = table.data.mean(0)
    torch.testing.assert_close(found, expected(noisy, sigma, Condition(label=label)))


def test_frozen_trunk_is_nearly_everything():
    source = load("digits-0-4").denoiser
    frozen, _ = begin("frozen", relabelled(source, 5), lambda: blank(source, 5, 0), trunk, 1.0)
    trained = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
    assert trained < 0.02 * sum(p.numel() for p in frozen.parameters())
    fresh = blank(source, 5, seed=3)
    again = blank(source, 5, seed=3)
    pairs = list(zip(fresh.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), source.parameters(), strict=True)
    )


def test_the_embedding_gap_of_samples_is_the_closed_form():
    """Linear denoisers given h and given z, fitted to one half, measured on the other."""
    generator = torch.Generator().manual_seed(0)
    head = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, -1.1]], dtype=torch.float64)
    target, source = bases(0.5, 0.9)
    z = torch.randn(16_000, P, generator=generator, dtype=torch.float64)
    noise = torch.randn(16_000, D, generator=generator, dtype=torch.float64)
    x, half, nats = z @ target @ head.mT + NOISE**0.5 * noise, 8000, []
    for seen in (z @ source, z):
        fitted = torch.linalg.lstsq(seen[:half], x[:half]).solution
        rest = x - seen @ fitted  # given what is seen, denoising x is denoising this
        law = fit_gaussian(rest[:half])
        curve = gaussian_loss_curve(law, rest[half:], noise_levels(1e-3, 1e3, 16))
        nats.append(contributions(curve))
    found = embedding_gap(*nats)
    exact = linear_gap(lost_signal(head, target, source), NOISE)
    assert found.stderr < 0.03 * exact
    assert abs(found.value - exact) < 3 * found.stderr


WRONG = {
    "arm": (lambda: begin("loro", model(), model, embedding, 1.0), "'loro' is not one of scratch"),
    "nothing shared": (
        lambda: begin("frozen", nn.Linear(2, 2), lambda: nn.Linear(3, 3), embedding, 1.0),
        "share no part",
    ),
    "risk": (lambda: linear_risks(20, 20, 3, 0.25, 0.0, 60), "expected 1 <= r < p"),
    "folds": (lambda: cross_validate({}, 6, folds=5), "5 of 6 samples"),
    "rank": (lambda: jacobian_angles(torch.sin, torch.cos, torch.randn(5, 3), 4), "rank 4"),
    "gap": (lambda: embedding_gap(torch.zeros(3), torch.zeros(2)), "of 3 and 2 samples"),
    "classes": (lambda: relabelled(model(), 2), "asked by class labels or by nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(case):
    attempt, message = WRONG[case]
    with pytest.raises(InstilError, match=message):
        attempt()
