"""Every adapter gives the same D as the exact denoiser it is built from."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from instil.base.draws import Draws
from instil.base.shapes import expand
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.karras import Karras
from instructors.analytic import Mixture, empirical, gaussian, mixture
from instructors.denoiser import UNCONDITIONAL, Condition, class_labels, score

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.3, 0.2]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T


def exact(noisy, sigma):
    """E[x | x_sigma] of the Gaussian, by solving the normal equations per sample."""
    rows = []
    for y, s in zip(noisy, sigma, strict=True):
        total = COVARIANCE + s**2 * torch.eye(3, dtype=y.dtype)
        rows.append(MEAN + COVARIANCE @ torch.linalg.solve(total, y - MEAN))
    return torch.stack(rows)


class Oracle(nn.Module):
    """The network a perfect training would give, in one of diffusers' parameterisations."""

    def __init__(self, prediction, alphas):
        super().__init__()
        self.prediction, self.alphas = prediction, alphas
        self.seen = []

    def forward(self, x, time, class_labels=None):
        self.seen.append(time)
        a2 = self.alphas[time.round().long()][:, None]
        a, b = a2.sqrt(), (1 - a2).sqrt()
        clean = exact(x / a, (b / a)[:, 0])
        noise = (x - a * clean) / b
        return {"epsilon": noise, "v_prediction": a * noise - b * clean, "sample": clean}[
            self.prediction
        ]


class EDMOracle(nn.Module):
    def __init__(self, sigma_data):
        super().__init__()
        self.sd = sigma_data

    def forward(self, x, time, class_labels=None):
        s = (4 * time).exp()
        total = (s**2 + self.sd**2).sqrt()[:, None]
        clean = exact(x * total, s)
        skip = self.sd**2 / total**2
        return (clean - skip * x * total) / (s[:, None] * self.sd / total)


SCHEDULES = {
    "linear": DDPMScheduler(),
    "scaled_linear": DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    ),
    "squaredcos_cap_v2": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "sigmoid": DDPMScheduler(beta_schedule="sigmoid"),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_discrete_networks_give_the_exact_denoiser(schedule, prediction):
    alphas = SCHEDULES[schedule].alphas_cumprod.double()
    network = Oracle(prediction, alphas)
    denoiser = DiscreteVP(network, (3,), alphas, prediction).double()
    times = torch.tensor([0, 1, 10, 250, 500, 900, 990, 999])
    sigma = ((1 - alphas) / alphas).sqrt()[times]
    noisy = MEAN + (1 + expand(sigma, torch.zeros(8, 3))) * torch.randn(8, 3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(noisy, sigma), exact(noisy, sigma), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(network.seen[0], times.double(), rtol=0, atol=1e-3)


def test_edm_networks_give_the_exact_denoiser():
    denoiser = Karras(EDMOracle(0.7), (3,), sigma_data=0.7)
    sigma = torch.logspace(-2.5, 1.9, 9, dtype=torch.float64)
    noisy = MEAN + (1 + sigma[:, None]) * torch.randn(9, 3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(noisy, sigma), exact(noisy, sigma))


def test_the_analytic_gaussian_is_the_exact_denoiser():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    noisy = torch.randn(9, 3, dtype=torch.float64) * (1 + sigma[:, None])
    torch.testing.assert_close(gaussian(MEAN, COVARIANCE)(noisy, sigma), exact(noisy, sigma))


def test_scores_are_gradients_of_the_log_density():
    law = mixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.0, 0.5], [2.0, 0.0]]).double(),
        torch.tensor([[[0.5, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.0]]]).double(),
    )
    noisy = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    sigma = torch.logspace(-1, 1, 20, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(law.log_density(noisy, sigma).sum(), noisy)
    torch.testing.assert_close(score(law(noisy, sigma), noisy, sigma), gradient)


def test_log_density_is_the_log_of_a_density():
    law = mixture(
        torch.tensor([1.0, 3.0]).double(),
        torch.tensor([[-1.0], [2.0]]).double(),
        torch.tensor([[[0.5]], [[0.2]]]).double(),
    )
    grid = torch.linspace(-20, 20, 20001, dtype=torch.float64)[:, None]
    sigma = torch.full((20001,), 0.7, dtype=torch.float64)
    total = law.log_density(grid, sigma).exp().sum() * 40 / 20000
    assert total.item() == pytest.approx(1, abs=1e-9)


def test_low_rank_equals_full():
    basis = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64))[0]
    variances, tail = torch.tensor([2.0, 0.5]).double(), 0.3
    low = Mixture(
        torch.ones(1).double(),
        torch.zeros(1, 4).double(),
        variances[None],
        basis[None],
        torch.tensor([tail]).double(),
    )
    covariance = basis @ torch.diag(variances - tail) @ basis.T + tail * torch.eye(4).double()
    full = gaussian(torch.zeros(4).double(), covariance)
    noisy, sigma = torch.randn(7, 4).double(), torch.logspace(-1, 1, 7).double()
    torch.testing.assert_close(low(noisy, sigma), full(noisy, sigma))
    torch.testing.assert_close(low.log_density(noisy, sigma), full.log_density(noisy, sigma))


def test_empirical_denoiser_is_a_softmax_over_the_samples():
    samples, noisy = torch.randn(6, 2, 2).double(), torch.randn(5, 2, 2).double()
    sigma = torch.full((5,), 0.8).double()
    distance = (noisy[:, None] - samples).flatten(2).square().sum(-1)
    share = (-distance / (2 * 0.8**2)).softmax(1)
    expected = torch.einsum("bk,kij->bij", share, samples)
    torch.testing.assert_close(empirical(samples)(noisy, sigma), expected)


def test_exact_samples_have_the_law():
    law = mixture(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[-3.0, 0.0], [3.0, 1.0]]),
        torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.2]]]),
    )
    draws = Draws.of_range(0, 0, 0, 40_000)
    samples = law.sample(draws.normal("z", (2,)), draws.uniform("k"))
    left = samples[samples[:, 0] < 0]
    assert len(left) / 40_000 == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(left.mean(0), torch.tensor([-3.0, 0.0]), atol=0.03, rtol=0)
    expected = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    torch.testing.assert_close(left.T.cov(), expected, atol=0.03, rtol=0)


def test_negative_covariance_is_refused():
    with pytest.raises(ValueError, match="covariance: an eigenvalue"):
        gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.1])))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigma_to_time_and_back(schedule):
    alphas = SCHEDULES[schedule].alphas_cumprod
    denoiser = DiscreteVP(nn.Identity(), (3,), alphas).double()
    sigmas = ((1 - alphas.double()) / alphas.double()).sqrt()
    times = denoiser.time(sigmas)
    torch.testing.assert_close(times, torch.arange(1000).double(), rtol=0, atol=2e-3)
    torch.testing.assert_close(denoiser.round_sigma(sigmas), sigmas, rtol=1e-5, atol=0)
    between = (sigmas[400] * sigmas[401]).sqrt()[None]
    assert denoiser.time(between).item() == pytest.approx(400.5, abs=2e-3)
    assert denoiser.round_sigma(between).item() in denoiser.log_sigmas.double().exp()
    outside = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert denoiser.time(outside).tolist() == [0, 999]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_adapter_agrees_with_diffusers_own_scheduler(unet, prediction):
    scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=False)
    network = unet().eval()
    denoiser = DiscreteVP(network, (1, 8, 8), scheduler.alphas_cumprod, prediction)
    x = torch.randn(1, 1, 8, 8)
    for time in (0, 10, 500, 999):
        alpha = scheduler.alphas_cumprod[time]
        with torch.no_grad():
            output = network(x, torch.tensor([float(time)])).sample
            theirs = scheduler.step(output, time, x).pred_original_sample
            sigma = ((1 - alpha) / alpha).sqrt()[None]
            ours = denoiser(x / alpha.sqrt(), sigma)
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * sigma.item())


def test_learned_variance_is_dropped(unet):
    network = unet(channels=3, out=6).eval()
    denoiser = DiscreteVP(network, (3, 8, 8), DDPMScheduler().alphas_cumprod)
    noisy, sigma = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    with torch.no_grad():
        output = network(noisy * (1 + expand(sigma, noisy) ** 2).rsqrt(), denoiser.time(sigma))
        expected = noisy - expand(sigma, noisy) * output.sample[:, :3]
        torch.testing.assert_close(denoiser(noisy, sigma), expected)


@pytest.mark.parametrize(
    ("kind", "level"), [("epsilon", "float32"), ("v_prediction", "bfloat16"), ("edm", "bfloat16")]
)
def test_autocast_does_not_reach_networks_whose_rounding_sigma_multiplies(unet, kind, level):
    network, seen = unet().eval(), []
    network.conv_in.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    if kind == "edm":
        denoiser = Karras(network, (1, 8, 8))
    else:
        denoiser = DiscreteVP(network, (1, 8, 8), DDPMScheduler().alphas_cumprod, kind)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = denoiser(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0]))
    assert output.dtype == torch.float32
    assert seen == [getattr(torch, level)]


def test_loss_weights_are_one_over_the_output_scale_squared():
    sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    zero, ones = torch.zeros(3, 3).double(), torch.ones(3, 3).double()
    alphas = DDPMScheduler().alphas_cumprod

    class Constant(nn.Module):
        def forward(self, x, time, class_labels=None):
            return ones * self.value

    network = Constant()
    denoisers = [DiscreteVP(network, (3,), alphas, p).double() for p in ("epsilon", "v_prediction")]
    denoisers += [DiscreteVP(network, (3,), alphas, "sample").double(), Karras(network, (3,))]
    for denoiser in denoisers:
        network.value = 0.0
        without = denoiser(zero, sigma)
        network.value = 1.0
        moved = (denoiser(zero, sigma) - without)[:, 0]
        torch.testing.assert_close(denoiser.weight(sigma) * moved**2, torch.ones(3).double())


def test_conditions():
    condition = class_labels(3, torch.arange(5))
    assert condition["label"].tolist() == [0, 1, 2, 0, 1]
    assert condition.rows(slice(1, 3))["label"].tolist() == [1, 2]
    joined = Condition.cat([condition, condition.rows(torch.tensor([0]))])
    assert joined["label"].tolist() == [0, 1, 2, 0, 1, 0]
    assert class_labels(0, torch.arange(5)) == UNCONDITIONAL
    with pytest.raises(TypeError):
        condition["label"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (0, (torch.zeros(2, 1, 4, 4), torch.ones(2)), r"noisy \(2, 1, 4, 4\)"),
        (0, (torch.zeros(2, 1, 8, 8), torch.ones(3)), r"sigma \(3,\)"),
        (5, (torch.zeros(2, 1, 8, 8), torch.ones(2)), "label: expected 2 class numbers below 5"),
        (
            0,
            (torch.zeros(2, 1, 8, 8), torch.ones(2), class_labels(3, torch.arange(2))),
            "label: given, but this model is unconditional",
        ),
    ],
)
def test_wrong_arguments_are_named(unet, classes, arguments, message):
    denoiser = Karras(unet(classes=classes or None), (1, 8, 8), classes=classes)
    with pytest.raises(ValueError, match=message):
        denoiser(*arguments)


def test_infinite_sigma_and_missing_null_are_refused(unet):
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        DiscreteVP(unet(), (1, 8, 8), scheduler.alphas_cumprod)
    with pytest.raises(ValueError, match="no null condition"):
        Karras(unet(), (1, 8, 8)).null(2)
    with pytest.raises(ValueError, match="prediction type 'flow'"):
        DiscreteVP(unet(), (1, 8, 8), DDPMScheduler().alphas_cumprod, "flow")


def test_heun_solves_the_ode_of_a_gaussian():
    from instructors.sampler import heun

    law = gaussian(torch.zeros(1).double(), torch.full((1, 1), 1.5).double())
    law.sigma_max = 20.0
    unit = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    # The flow keeps x / sqrt(lambda + sigma**2) constant (probability-flow ODE of a Gaussian).
    expected = unit * 20 * math.sqrt(1.5 / (1.5 + 20**2))
    errors = [(heun(law, unit, steps) - expected).abs().max().item() for steps in (50, 200)]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] > 10  # second order: 16 in the limit
