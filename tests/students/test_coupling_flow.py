"""Coupling flows: an exact density, fitted by likelihood, distilled from a known law."""

import math

import pytest
import torch
from accelerate import Accelerator

from distill.recipe import Method
from distill.trainer import State, train
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.optimizer import Adam
from instructors.adapters.karras import Karras
from instructors.analytic import mixture
from instructors.denoiser import Condition, class_labels
from instructors.mlp import MLP
from students.coupling_flow import CouplingFlow, fit
from students.load import load
from students.source import Source

KINDS = ("additive", "affine", "spline")


def random_flow(kind, shape=(3,), strength=0.3, **settings):
    """A flow with random weights and a centre and spread of its own, in float64."""
    torch.manual_seed(1)
    flow = CouplingFlow(shape, kind, **settings).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(strength * torch.randn_like(parameter))
    return flow


def given(flow, count):
    """A condition of the right form."""
    tensors = {}
    if flow.classes:
        tensors["label"] = torch.arange(count) % flow.classes
    if flow.context:
        generator = torch.Generator().manual_seed(0)
        tensors["context"] = torch.randn(
            count, flow.context, generator=generator, dtype=torch.float64
        )
    return Condition(**tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{}, {"classes": 3}, {"context": 2}, {"classes": 2, "context": 1}]
)
def test_the_density_is_the_change_of_variables(kind, settings):
    flow = random_flow(kind, **settings)
    (z,), condition = flow.prior(Draws.of_range(0, 0, 0, 5)), given(flow, 5)
    x = flow((z,), condition)
    found = flow.log_prob(x, condition)
    for row in range(5):
        one = condition.rows(slice(row, row + 1))
        jacobian = torch.autograd.functional.jacobian(
            lambda u, one=one: flow((u[None],), one)[0], z[row]
        )
        normal = -0.5 * (z[row] ** 2).sum() - 1.5 * math.log(2 * math.pi)
        expected = normal - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_density_integrates_to_one(kind):
    flow = random_flow(kind, (2,), strength=0.1, hidden=(16,))
    side = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side) * flow.log_spread.exp() + flow.center
    cell = ((side[1] - side[0]) ** 2 * flow.log_spread.exp().prod()).item()
    assert flow.log_prob(grid).exp().sum().item() * cell == pytest.approx(1, abs=2e-3)


def test_what_the_condition_lacks_is_said():
    flow = random_flow("affine", classes=2, context=1)
    (z,) = flow.prior(Draws.of_range(0, 0, 0, 4))
    with pytest.raises(ValueError, match="label: expected class numbers below 2, got none"):
        flow((z,), Condition(context=torch.zeros(4, 1)))
    with pytest.raises(ValueError, match=r"context: expected \(4, 1\), got none"):
        flow((z,), class_labels(2, torch.arange(4)))
    with pytest.raises(ValueError, match=r"context: expected none, got shape \(4, 1\)"):
        random_flow("affine")((z,), Condition(context=torch.zeros(4, 1)))


def test_fit_reaches_the_maximum_likelihood_of_a_linear_gaussian_model():
    # Linear additive couplings and a spread are every x = A context + b + L z, L triangular, so the
    # least negative log-likelihood is that of linear regression: half log det of the residuals'
    # covariance and d / 2 log(2 pi e).
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    context, x = draw(40, 3), draw(40, 2) @ draw(2, 2)
    x = x + context @ draw(3, 2) + 1
    design = torch.cat([context, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    rest = x - design @ torch.linalg.lstsq(design, x).solution
    exact = 0.5 * torch.logdet(rest.T @ rest / 40) + math.log(2 * math.pi * math.e)
    flow = CouplingFlow((2,), "additive", context=3, transforms=2, hidden=()).double()
    adam = Adam(lr=0.02, betas=(0.9, 0.99), schedule="cosine")
    found = fit(flow, x, Condition(context=context), steps=600, batch=40, optimizer=adam)
    assert -1e-9 < found - exact.item() < 1e-3


@pytest.fixture
def law():
    """A mixture of three Gaussians in the plane, none of them round."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, -1.5]])
    covariances = torch.tensor(
        [[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.6]], [[0.6, 0.0], [0.0, 0.2]]]
    )
    return mixture(torch.tensor([0.5, 0.3, 0.2]), means, covariances)


@torch.no_grad()
def divergence(flow, law, count=20_000):
    """KL(flow || law) in nats by Monte Carlo, and its standard error."""
    x = flow(flow.prior(Draws.of_range(9, 0, 0, count)))
    difference = flow.log_prob(x) - law.log_density(x, torch.zeros(count))
    return difference.mean().item(), difference.std().item() / count**0.5


@pytest.mark.slow
def test_fit_comes_near_a_mixture(law):
    draws = Draws.of_range(3, 0, 0, 10_000)
    x = law.sample(draws.normal("z", (2,)), draws.uniform("component"))
    flow = CouplingFlow((2,), "spline")
    fit(flow, x, steps=600, batch=512)
    assert divergence(flow, law)[0] < 0.03


@pytest.mark.slow
def test_a_mixture_is_distilled_into_a_flow(law):
    torch.manual_seed(0)
    flow, fake = CouplingFlow((2,), "spline", spread=2.0), Karras(MLP(2, width=64), (2,))
    adam = {"betas": [0.0, 0.99], "schedule": "linear"}
    method = Method().replace(
        divergence="sid",
        levels={"kind": "log_uniform", "sigma_min": 0.1, "sigma_max": 3.0},
        optimizer={"lr": 1e-3} | adam,  # at twice the rate some runs lose a mode
        fake={"updates": 4, "optimizer": {"lr": 6e-3} | adam},
        train={"steps": 800, "batch": 256, "averages": [20_000]},
    )
    state = State.fresh(flow, fake, method)
    assert divergence(flow, law)[0] > 0.5
    for _ in train(state, law, method, Accelerator(cpu=True)):
        pass
    found, error = divergence(state.averages[0].module, law, count=100_000)
    assert found + 2 * error < 0.15


def test_a_folder_gives_the_same_flow_back(tmp_path):
    flow = random_flow("spline", classes=2).float().eval()
    flow.save_pretrained(tmp_path / "flow")
    loaded = load(Source(weights=str(tmp_path / "flow")))
    assert torch.equal(loaded.sample(range(6)), flow.sample(range(6)))


WRONG = {
    "kind": (lambda x: CouplingFlow((2,), "cubic"), "kind: 'cubic' is not one of additive, affin"),
    "shape": (lambda x: fit(CouplingFlow((3,)), x), r"shape \(9, 2\): expected \(N, 3\)"),
    "values": (lambda x: fit(CouplingFlow((2,)), x / 0), "some values are not finite"),
    "constant": (lambda x: fit(CouplingFlow((2,)), 0 * x), r"2 coordinate\(s\) never change"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(case):
    attempt, message = WRONG[case]
    with pytest.raises(InstilError, match=message):
        attempt(torch.randn(9, 2))
