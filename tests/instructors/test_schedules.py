"""Every scheduler class of diffusers: the denoiser its own code steps to, or refused by name."""

import inspect
from functools import cache
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

from instil.base.errors import InstilError
from instructors.adapters.folder import adapt, adapter_of
from instructors.adapters.schedules import FLOW, KNOWN, SAMPLING, SCHEDULES, schedule_of

CLASSES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith(("Flax", "Karras"))
)
# Two values of each setting beside the class's own default.
OTHERS = {
    "num_train_timesteps": (100, 400),
    "beta_start": (0.0005,),
    "beta_end": (0.015,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (torch.linspace(1e-3, 0.05, 1000).tolist(),),
    "rescale_betas_zero_snr": (True,),
    "timestep_type": ("continuous",),
    "sigma_min": (0.01,),
    "sigma_max": (40.0,),
    "sigma_data": (1.0,),
}
HEAVY = {"DPMSolverSDEScheduler": "torchsde"}


class Network(nn.Module):
    """A smooth function of the input and the time."""

    config = SimpleNamespace(time_embedding_type="fourier")

    def forward(self, x, time, class_labels=None):
        time = torch.as_tensor(time, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return (0.7 * x + 0.2).tanh() + 0.3 * (time / 200).cos()


NETWORK = Network()


def defaults(name):
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {
        key: value.default
        for key, value in signature.items()
        if key not in ("self", "args", "kwargs") and value.default is not inspect.Parameter.empty
    }


def ours(name, settings):
    config = {"_class_name": name, **defaults(name), **settings}
    return adapt(adapter_of(config), config, NETWORK, (1, 4, 4), 0).double()


def theirs(name, settings):
    """Levels, inputs at them and the clean sample, by the scheduler's own code, at four times."""
    if defaults(name).get("clip_sample"):
        settings = settings | {"clip_sample": False}
    s = getattr(diffusers, name)(**settings)
    s.set_timesteps(4)
    for index in range(len(s.timesteps)):
        time, unit = s.timesteps[index], torch.linspace(-2, 2, 16).double().reshape(1, 1, 4, 4)
        if "Heun" in name or name.startswith("KDPM2"):
            if index % 2 or index == len(s.timesteps) - 1:
                continue
            s = getattr(diffusers, name)(**settings)
            s.set_timesteps(4)
        if hasattr(s, "_step_index"):
            s._step_index = index
        if settings.get("use_flow_sigmas"):  # the time itself, which these cut to an integer
            time = s.sigmas[index] * s.config.num_train_timesteps
        if name.startswith("FlowMatch"):
            level = s.sigmas[index].double()
            if level == 1:
                continue
            s.sigmas[index + 1] = 0
            x = (1 - level) * unit
            yield level / (1 - level), unit, s.step(NETWORK(x, time), time, x).prev_sample
        elif hasattr(s, "convert_model_output") and not hasattr(s, "precondition_inputs"):
            alpha, noise = (v.double() for v in s._sigma_to_alpha_sigma_t(s.sigmas[index]))
            if alpha == 0:
                continue
            x = alpha * unit
            clean = s.convert_model_output(NETWORK(x, time), sample=x)
            clean = (x - noise * clean) / alpha if name.startswith("DEIS") else clean
            yield noise / alpha, unit, clean
        elif hasattr(s, "sigmas"):
            scaled = s.scale_model_input(unit, time)
            level, output = s.sigmas[index].double(), NETWORK(scaled, time)
            if hasattr(s, "convert_model_output"):
                yield level, unit, s.convert_model_output(output, unit)
            else:
                yield level, unit, s.step(output, time, unit).pred_original_sample
        else:
            signal = s.alphas_cumprod[int(time)].double()
            if signal == 0:
                continue
            x, level = signal.sqrt() * unit, ((1 - signal) / signal).sqrt()
            output = NETWORK(x, time)
            if name == "PNDMScheduler":
                s.final_alpha_cumprod = torch.tensor(1.0)
                yield level, unit, s._get_prev_sample(x, int(time), -1, output)
            elif SCHEDULES[name].distilled:  # a step of theirs is no denoiser's
                noised = s.add_noise(unit * 0 + 1, unit * 0, time) ** 2
                assert noised.flatten()[0].item() == pytest.approx(signal.item(), rel=1e-5)
            else:
                yield level, unit, s.step(output, int(time), x).pred_original_sample


@cache
def combinations():
    """Every class that is read, every prediction type, every setting of the process."""
    found = []
    for name, schedule in SCHEDULES.items():
        if name == "ScoreSdeVeScheduler":
            continue  # below
        for prediction in schedule.predictions or (None,):
            base = {"prediction_type": prediction} if prediction else {}
            base |= {"use_flow_sigmas": True} if prediction == FLOW else {}
            found.append((name, base))
            if prediction == FLOW:
                found += [(name, base | {"flow_shift": 3.0, "num_train_timesteps": 100})]
                continue
            for key in schedule.process:
                found += [(name, base | {key: value}) for value in OTHERS[key]]
    return found


def agree(name, settings):
    """Whether it is read; if so, the denoiser is diffusers' own."""
    if HEAVY.get(name) and not diffusers.utils.import_utils._is_package_available("torchsde")[0]:
        return False
    try:
        denoiser = ours(name, settings)
    except InstilError:
        return False
    for level, noisy, clean in theirs(name, settings):
        if not 0.999 * denoiser.sigma_min < level < 1.001 * denoiser.sigma_max:
            continue
        mine = denoiser(noisy.double(), level.reshape(1).double())
        scale = (1 + level.item()) * 1e-5
        torch.testing.assert_close(
            mine, clean.double(), rtol=1e-5, atol=scale, msg=lambda m: f"{name} {settings}: {m}"
        )
    return True


@pytest.mark.slow
def test_denoisers_are_those_of_diffusers_own_code():
    read = [agree(name, settings) for name, settings in combinations()]
    assert len(read) == 535
    assert sum(read) >= 507


def test_some_denoisers_are_those_of_diffusers_own_code():
    assert sum(agree(name, settings) for name, settings in combinations()[::13]) > 15


def test_a_score_is_stepped_to_no_noise():
    schedule = diffusers.ScoreSdeVeScheduler(sigma_min=0.3, sigma_max=20.0)
    schedule.set_timesteps(5)
    schedule.set_sigmas(5)
    noisy, level = torch.linspace(-2, 2, 16).double().reshape(1, 1, 4, 4), torch.tensor([0.3])
    step = schedule.step_pred(NETWORK(noisy, level), schedule.timesteps[-1], noisy)
    denoiser = ours("ScoreSdeVeScheduler", {"sigma_min": 0.3, "sigma_max": 20.0})
    torch.testing.assert_close(denoiser(noisy, level.double()), step.prev_sample_mean.double())


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str | list | None):
        return "another" if isinstance(value, str) else [1]
    return value * 2 + 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_settings_of_sampling_leave_the_denoiser_alone(name):
    if name in HEAVY:
        pytest.importorskip(HEAVY[name])
    process = {*SCHEDULES[name].process, "prediction_type", "use_flow_sigmas", "invert_sigmas"}
    noisy, sigma = torch.ones(1, 1, 4, 4).double(), torch.tensor([0.7]).double()
    expected = ours(name, {})
    free = {key: value for key, value in defaults(name).items() if key not in process}
    assert free.keys() <= SAMPLING, f"{name}: a setting of no kind"
    other = ours(name, {key: changed(value) for key, value in free.items()})
    assert torch.equal(other(noisy, sigma), expected(noisy, sigma))
    assert (other.sigma_min, other.sigma_max) == (expected.sigma_min, expected.sigma_max)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - set(SCHEDULES)))
def test_every_other_class_is_refused_by_name(name):
    with pytest.raises(InstilError, match=f"scheduler {name} is not supported"):
        schedule_of({"_class_name": name})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ("UniPCMultistepScheduler", {"prediction_type": FLOW}, "use_flow_sigmas=False"),
        ("DDIMScheduler", {"warped": 3.0}, "warped=3.0, which is not a setting of diffusers"),
        ("DDPMScheduler", {"beta_schedule": "bent"}, "bent is not implemented"),
        ("DDIMScheduler", {"prediction_type": "score"}, "prediction type 'score'"),
        ("HeunDiscreteScheduler", {"prediction_type": FLOW}, "prediction type 'flow_prediction'"),
    ],
)
def test_what_changes_the_process_and_is_not_understood_is_refused(name, settings, message):
    with pytest.raises(InstilError, match=message):
        ours(name, settings)


def test_settings_left_behind_by_another_class_are_left_alone():
    left = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "trained_betas": None}
    assert type(ours("EDMDPMSolverMultistepScheduler", left)).__name__ == "Karras"
    plain = ours("PNDMScheduler", {})
    left = ours("PNDMScheduler", {"rescale_betas_zero_snr": True, "timestep_type": "continuous"})
    assert torch.equal(left.log_sigmas, plain.log_sigmas)
    assert KNOWN >= SAMPLING
