"""Flow and discrete networks against closed forms and against diffusers' own schedulers."""

import math

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from instil.base.shapes import expand
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.exploding import ScoreVE
from instructors.adapters.flow import Flow
from instructors.denoiser import Condition
from instructors.sampler import heun

SHAPE = (2, 4, 4)
MEAN = torch.linspace(-1, 1, 32, dtype=torch.float64).view(SHAPE)
VARIANCE = torch.linspace(0.1, 2, 32, dtype=torch.float64).view(SHAPE)
CONDITION = Condition(
    text=torch.zeros(5, 3, 4).double(),
    pooled=torch.zeros(5, 4).double(),
    guidance=torch.full((5,), 3.5).double(),
)


def exact(noisy, sigma):
    s = expand(sigma, noisy) ** 2
    return MEAN + VARIANCE / (VARIANCE + s) * (noisy - MEAN)


def velocity(scaled, u):
    """E[noise - x | x_u] of the Gaussian: both conditional means, from the joint covariance."""
    u = expand(u, scaled)
    total = (1 - u) ** 2 * VARIANCE + u**2
    apart = scaled - (1 - u) * MEAN
    return u / total * apart - (MEAN + (1 - u) * VARIANCE / total * apart)


class SD3Transformer2DModel(nn.Module):
    """Named as diffusers', so that it is called as diffusers' is."""

    def forward(self, hidden_states, encoder_hidden_states, pooled_projections, timestep):
        return velocity(hidden_states, timestep / 1000)


class FluxTransformer2DModel(nn.Module):
    def forward(
        self,
        hidden_states,
        encoder_hidden_states,
        pooled_projections,
        timestep,
        img_ids,
        txt_ids,
        guidance,
    ):
        from types import SimpleNamespace

        from diffusers import FluxPipeline

        count, (channels, height, width) = len(hidden_states), SHAPE
        ids = FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", None)
        torch.testing.assert_close(img_ids, ids.to(img_ids))
        assert txt_ids.shape == (3, 3)
        assert (guidance == 3.5).all()
        noisy = FluxPipeline._unpack_latents(hidden_states, height, width, 1)
        found = velocity(noisy, timestep)
        return SimpleNamespace(
            sample=FluxPipeline._pack_latents(found, count, channels, height, width)
        )


class Plain(nn.Module):
    def forward(self, x, time, class_labels=None):
        return velocity(x, time / 1000)


@pytest.mark.parametrize("network", [SD3Transformer2DModel, FluxTransformer2DModel, Plain])
def test_flow_networks_give_the_exact_denoiser(network):
    denoiser = Flow(network(), SHAPE)
    if network is not Plain:
        denoiser.text = ("text", "pooled")
    sigma = torch.logspace(-3, 3, 5, dtype=torch.float64).clamp(Flow.sigma_min, Flow.sigma_max)
    noisy = MEAN + (1 + expand(sigma, MEAN[None])) * torch.randn(5, *SHAPE, dtype=torch.float64)
    found = denoiser(noisy, sigma, CONDITION)
    torch.testing.assert_close(found, exact(noisy, sigma), rtol=1e-4, atol=1e-6)
    single = denoiser(noisy.float(), sigma.float(), CONDITION)
    torch.testing.assert_close(single.double(), exact(noisy, sigma), rtol=1e-4, atol=1e-3)


class Score(nn.Module):
    """The score of x + s noise, at the time s."""

    def forward(self, x, time, class_labels=None):
        return (exact(x, time) - x) / expand(time, x) ** 2


def test_score_networks_give_the_exact_denoiser():
    denoiser = ScoreVE(Score(), SHAPE)
    ends = (math.log10(denoiser.sigma_min), math.log10(denoiser.sigma_max))
    sigma = torch.logspace(*ends, 7, dtype=torch.float64)
    noisy = MEAN + (1 + expand(sigma, MEAN[None])) * torch.randn(7, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(denoiser(noisy, sigma), exact(noisy, sigma), rtol=1e-4, atol=1e-6)


def test_flow_weight_is_one_over_the_output_scale_squared():
    class Constant(nn.Module):
        def forward(self, x, time, class_labels=None):
            return torch.ones_like(x) * self.value

    network, sigma = Constant(), torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)
    denoiser, zero = Flow(network, (1,)), torch.zeros(3, 1).double()
    network.value = 0.0
    without = denoiser(zero, sigma)
    network.value = 1.0
    moved = (denoiser(zero, sigma) - without)[:, 0]
    torch.testing.assert_close(denoiser.weight(sigma) * moved**2, torch.ones(3).double())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_agrees_with_diffusers_own_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(7)
    denoiser, x = Flow(Plain(), SHAPE), torch.randn(1, *SHAPE)
    for number in range(1, 7):
        u, time = scheduler.sigmas[number], scheduler.timesteps[number]
        output = Plain()(x, time[None])
        sigma = (u / (1 - u))[None]
        if sigma < Flow.sigma_max:
            theirs = x - u * output  # their Euler step to u = 0, checked below
            ours = denoiser(x * (1 + sigma), sigma)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3, check_dtype=False)
    scheduler.set_timesteps(sigmas=[0.8])
    step = scheduler.step(Plain()(x, scheduler.timesteps[:1]), scheduler.timesteps[0], x)
    u = scheduler.sigmas[:1]
    ours = denoiser(x / (1 - u), u / (1 - u))
    torch.testing.assert_close(ours, step.prev_sample, rtol=1e-4, atol=1e-4, check_dtype=False)


SCHEDULES = {
    "linear": {},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_are_those_of_diffusers(schedule):
    options = {"beta_schedule": schedule, **SCHEDULES[schedule]}
    theirs = EulerDiscreteScheduler(**options)
    ours = DiscreteVP(nn.Identity(), SHAPE, DDPMScheduler(**options).alphas_cumprod)
    sigmas = theirs.sigmas[:-1].flip(0)
    torch.testing.assert_close(ours.log_sigmas.exp(), sigmas, rtol=1e-4, atol=0)
    theirs.set_timesteps(11)
    found = ours.time(theirs.sigmas[:-1])
    torch.testing.assert_close(found, theirs.timesteps.float(), rtol=0, atol=2e-2)


class Oracle(nn.Module):
    """eps, v or x0 of the Gaussian at integer or fractional times."""

    def __init__(self, prediction, alphas):
        super().__init__()
        self.prediction = prediction
        sigmas = ((1 - alphas) / alphas).sqrt()
        self.log_sigmas = sigmas.log()[sigmas.isfinite()]

    def forward(self, x, time, class_labels=None):
        below = time.long().clamp(max=len(self.log_sigmas) - 2)
        log_sigma = torch.lerp(
            self.log_sigmas[below], self.log_sigmas[below + 1], (time - below).to(x.dtype)
        )
        s = expand(log_sigma.exp(), x)
        a = (1 + s**2).rsqrt()
        clean = exact(x / a, log_sigma.exp())
        noise = (x - a * clean) / (a * s)
        outputs = {"epsilon": noise, "v_prediction": a * noise - a * s * clean, "sample": clean}
        return outputs[self.prediction]


ZERO_SNR = {"rescale_betas_zero_snr": True}
EVERY = [
    *(
        (name, {})
        for name in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
    ),
    ("linear", ZERO_SNR),
    ("scaled_linear", ZERO_SNR),
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("schedule", "options"), EVERY)
def test_every_schedule_over_its_own_range(schedule, options, prediction):
    alphas = DDPMScheduler(beta_schedule=schedule, **options).alphas_cumprod.double()
    if options and prediction == "epsilon":
        with pytest.raises(ValueError, match="epsilon says nothing about the data"):
            DiscreteVP(Oracle(prediction, alphas), SHAPE, alphas, prediction)
        return
    denoiser = DiscreteVP(Oracle(prediction, alphas), SHAPE, alphas, prediction).double()
    assert denoiser.sigma_max < float("inf")
    assert len(denoiser.log_sigmas) == (999 if options else 1000)
    ends = torch.tensor([denoiser.sigma_min, denoiser.sigma_max], dtype=torch.float64).log()
    sigma = torch.linspace(*ends.tolist(), 9, dtype=torch.float64).exp()
    noisy = MEAN + (1 + expand(sigma, MEAN[None])) * torch.randn(9, *SHAPE, dtype=torch.float64)
    expected = exact(noisy, sigma)
    # log sigma is kept in float32: its rounding is all that is left
    torch.testing.assert_close(denoiser(noisy, sigma), expected, rtol=1e-4, atol=1e-4)


def test_a_schedule_that_does_not_rise_is_refused():
    with pytest.raises(ValueError, match="do not rise"):
        DiscreteVP(nn.Identity(), SHAPE, torch.tensor([0.9, 0.5, 0.6, 0.1]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_samplers_follow_the_ode_of_a_gaussian(kind):
    """The map of the probability-flow ODE keeps (x - mean) / sqrt(variance + sigma**2)."""
    unit = torch.randn(4, *SHAPE, dtype=torch.float64)
    if kind == "flow":
        denoiser = Flow(Plain(), SHAPE)
    else:
        alphas = DDPMScheduler().alphas_cumprod.double()
        denoiser = DiscreteVP(Oracle(kind, alphas), SHAPE, alphas, kind).double()
    high = denoiser.sigma_max
    stretch = (VARIANCE / (VARIANCE + high**2)).sqrt()
    expected = MEAN + (high * unit - MEAN) * stretch
    steps = 400 if kind == "flow" else 200  # its range of six decades is the widest
    torch.testing.assert_close(heun(denoiser, unit, steps), expected, rtol=0, atol=1e-3)
    if kind == "flow":
        return
    solver = DPMSolverMultistepScheduler(
        prediction_type=kind, final_sigmas_type="zero", timestep_spacing="linspace"
    )
    solver.set_timesteps(200)
    x = unit  # of variance one, as diffusers starts
    expected = MEAN + (high * unit * (1 + high**-2) ** 0.5 - MEAN) * stretch
    for time in solver.timesteps:
        output = denoiser.network(x, time[None].expand(4).double())
        x = solver.step(output, time, x).prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=5e-3)
