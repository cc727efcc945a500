"""Denoisers made of denoisers, against closed forms; priors; guidance in a training step."""

import pytest
import torch
from accelerate import Accelerator
from scipy import stats

from distill.cost.plan import forwards_per_update
from distill.recipe import Method
from distill.trainer import State, train
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.adapters.guidance import Blend, Guided
from instructors.adapters.karras import Karras
from instructors.analytic import gaussian, mixture
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Condition, Denoiser, class_labels, score
from instructors.mlp import MLP
from students.one_step import OneStep

MEANS = [torch.tensor([0.5, -1.0]).double(), torch.tensor([-0.3, 0.8]).double()]
COVARIANCES = [
    torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double(),
    torch.tensor([[0.2, -0.1], [-0.1, 2.0]]).double(),
]
LAWS = [gaussian(mean, covariance) for mean, covariance in zip(MEANS, COVARIANCES, strict=True)]


def product(weights, sigma):
    """Mean and covariance of prod_k N(mean_k, covariance_k + sigma**2)**weight_k."""
    inverses = [(c + sigma**2 * torch.eye(2).double()).inverse() for c in COVARIANCES]
    precision = sum(w * inverse for w, inverse in zip(weights, inverses, strict=True))
    pulls = [w * i @ m for w, i, m in zip(weights, inverses, MEANS, strict=True)]
    covariance = precision.inverse()
    return covariance @ sum(pulls), covariance


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 1.0), (1.7, -0.2)])
def test_a_blend_is_the_product_of_gaussians_at_each_sigma(weights):
    blend = Blend(LAWS, [weights]).double()
    for sigma in (0.01, 0.3, 2.0, 40.0):
        noisy = torch.randn(6, 2).double() * (1 + sigma)
        level = torch.full((6,), sigma).double()
        mean, covariance = product(weights, sigma)
        expected = -(noisy - mean) @ covariance.inverse()
        found = score(blend(noisy, level), noisy, level)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_blend_is_no_noisy_version_of_one_law():
    covariances = [product((0.5, 0.5), s)[1] - s**2 * torch.eye(2).double() for s in (0.1, 1.0)]
    assert (covariances[0] - covariances[1]).abs().max() > 0.1


def test_blends_of_mixtures_are_gradients_of_the_summed_log_densities():
    law = mixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.0, 0.5], [2.0, 0.0]]).double(),
        torch.stack(COVARIANCES),
    )
    blend = Blend([law, LAWS[0]], [(0.6, 0.4)]).double()
    noisy = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    sigma = torch.logspace(-1, 1, 9, dtype=torch.float64)
    total = 0.6 * law.log_density(noisy, sigma) + 0.4 * LAWS[0].log_density(noisy, sigma)
    (gradient,) = torch.autograd.grad(total.sum(), noisy)
    torch.testing.assert_close(
        score(blend(noisy, sigma), noisy, sigma), gradient, rtol=1e-6, atol=0
    )


def test_weights_are_linear_in_log_sigma():
    blend = Blend(LAWS, [(1.0, 0.0), (0.2, 0.8)], sigmas=(0.1, 10.0))
    found = blend.weights_at(torch.tensor([0.001, 0.1, 1.0, 10.0, 70.0]))
    expected = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.4], [0.2, 0.8], [0.2, 0.8]])
    torch.testing.assert_close(found, expected)
    level, noisy = torch.full((3,), 0.05), torch.randn(3, 2)
    only = LAWS[0](noisy.double(), level.double()).float()
    torch.testing.assert_close(blend(noisy, level), only, check_dtype=False)


def test_the_first_instructor_is_the_one_copied():
    one, two = (Karras(MLP(2), (2,), sigma_min=low, sigma_max=9.0) for low in (0.01, 0.02))
    blend = Blend([one, two], [(0.5, 0.5)])
    assert blend.base() is one
    assert (blend.sigma_min, blend.sigma_max, blend.evaluations) == (0.02, 9.0, 2)


@pytest.mark.parametrize(
    ("others", "weights", "sigmas", "message"),
    [
        ([Karras(MLP(3), (3,))], [(1, 1)], (1.0,), "differ in shape"),
        ([Karras(MLP(2), (2,), classes=3)], [(1, 1)], (1.0,), "differ in classes"),
        ([Karras(MLP(2), (2,), 90.0, 100.0)], [(1, 1)], (1.0,), "do not meet"),
        ([Karras(MLP(2), (2,))], [(1, 1, 1)], (1.0,), "expected 1 row"),
        ([Karras(MLP(2), (2,))], [(1, 1), (1, 1)], (2.0, 1.0), "must rise"),
    ],
)
def test_instructors_that_do_not_fit_are_named(others, weights, sigmas, message):
    with pytest.raises(InstilError, match=message):
        Blend([Karras(MLP(2), (2,)), *others], weights, sigmas)


class Labelled(Denoiser):
    """The exact denoiser of two Gaussians by label; label 2 stands for both."""

    shape, sigma_min, sigma_max, classes = (2,), 0.01, 50.0, 2

    def denoise(self, noisy, sigma, condition):
        one, two = (law(noisy, sigma) for law in LAWS)
        label = condition["label"][:, None]
        return torch.where(label == 0, one, torch.where(label == 1, two, (one + two) / 2))


def test_guidance_is_linear():
    denoiser = Labelled()
    denoiser.set_null(Condition(label=torch.tensor([2])))
    guided = Guided(denoiser, 3.0)
    noisy, sigma = torch.randn(4, 2).double(), torch.tensor([0.1, 1.0, 2.0, 30.0]).double()
    one, two = (law(noisy, sigma) for law in LAWS)
    null = (one + two) / 2
    picked = torch.where(torch.tensor([[True], [False]] * 2), one, two)
    found = guided(noisy, sigma, class_labels(2, torch.arange(4)))
    torch.testing.assert_close(found, null + 3 * (picked - null))
    assert guided.base() is denoiser
    assert guided.evaluations == 2


def test_guidance_needs_a_null_condition():
    with pytest.raises(ValueError, match="no null condition; leave guidance out"):
        Guided(Labelled(), 2.0)


def test_priors_draw_and_run_through_their_conditions():
    draws = Draws.of_range(3, 7, 0, 20_000)
    uniform = labels(4)
    counts = uniform.draw(draws)["label"].bincount(minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert uniform.at(torch.arange(6))["label"].tolist() == [0, 1, 2, 3, 0, 1]
    shares = torch.tensor([1.0, 0.0, 3.0])
    found = labels(3, shares).draw(draws)["label"].bincount(minlength=3) / 20_000
    torch.testing.assert_close(found, shares / 4, atol=0.01, rtol=0)
    table = Prior(Condition(text=torch.arange(6.0).view(3, 2)))
    assert table.at(torch.tensor([4]))["text"].tolist() == [[2, 3]]
    assert len(Prior().draw(draws)) == len(labels(0).at(torch.arange(3))) == 0


@pytest.mark.parametrize("divergence", ["ikl", "sid"])
def test_guidance_on_the_fake_is_a_guided_fake(divergence):
    """One update with guidance, beside the same update written out."""
    torch.manual_seed(0)
    method = Method().replace(
        divergence=divergence,
        levels={"kind": "log_uniform"},
        optimizer={"lr": 1e-3, "betas": [0.0, 0.9]},
        fake={"guidance": 2.5, "drop": 1.0},
        train={"steps": 1, "batch": 8, "averages": [0]},
    )

    def network():
        made = Karras(MLP(2, width=8, depth=1, classes=3).double(), (2,), classes=2)
        made.set_null(Condition(label=torch.tensor([2])))
        return made

    instructor, fake, student = network(), network(), OneStep(network(), 1.5)
    state = State.fresh(student, fake, method)
    table = fake.network.label.weight.detach().clone()
    optimizer = method.optimizer.build(student)
    twin = {name: value.clone() for name, value in student.state_dict().items()}
    draws = Draws.of_range(0, 0, 0, 8)
    condition = labels(2).draw(draws)
    sample = student(student.prior(draws), condition)
    leaf = sample.detach().requires_grad_(method.divergence.jacobian)
    uniform = draws.uniform("divergence-sigma")
    sigma = method.levels.sample(uniform, instructor.sigma_min, instructor.sigma_max)
    noise = draws.normal("divergence-noise", (2,), torch.float64)
    noisy = leaf + sigma[:, None] * noise
    taught = instructor(noisy, sigma, condition)
    null = fake(noisy, sigma, fake.null(8))
    judged = null + 2.5 * (fake(noisy, sigma, condition) - null)
    if not method.divergence.jacobian:
        leaf, judged, taught = leaf.clone().requires_grad_(), judged.detach(), taught.detach()
    loss = method.divergence(leaf, sigma, taught, judged)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    sample.backward(gradient / 8)
    method.optimizer.update(optimizer, 0, 1)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer.zero_grad()
    student.load_state_dict(twin)
    for _ in train(state, instructor, method, Accelerator(cpu=True)):
        pass
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    # drop: 1 trains the fake's null condition alone
    moved = (fake.network.label.weight != table).any(1)
    assert moved.tolist() == [False, False, True]
    assert forwards_per_update(method) == {"ikl": 9, "sid": 12}[divergence]
