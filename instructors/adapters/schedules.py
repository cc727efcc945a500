"""The schedulers of diffusers that are read, and each of their settings.

A setting of the process says what the network was trained on. A setting of sampling says at which
levels a sampler stops and how it steps from one to the next, so the denoiser is the same whatever
its value. Settings of neither kind are left alone by diffusers, as those that another scheduler's
configuration has left behind; they are refused if no scheduler of diffusers is known to have them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from instil.base.errors import InstilError

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
ZERO = (*BETAS, "rescale_betas_zero_snr")
EDM = ("sigma_min", "sigma_max", "sigma_data")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
FLOW = "flow_prediction"
# Levels visited, order of the solver, its noise, and clipping of what the network says.
SAMPLING = frozenset(
    """
    algorithm_type base_image_seq_len base_shift clip_sample clip_sample_range correct_steps
    corrector_order disable_corrector dynamic_thresholding_ratio euler_at_final final_sigmas_type
    flow_shift interpolation_type lambda_min_clipped lower_order_final max_image_seq_len max_shift
    num_train_timesteps original_inference_steps predict_x0 predictor_order rho sample_max_value
    sampling_eps scale_factors set_alpha_to_one shift shift_terminal sigma_max sigma_min
    sigma_schedule skip_prk_steps snr solver_order solver_p solver_type steps_offset
    stochastic_sampling tau_func thresholding time_shift_type timestep_scaling timestep_spacing
    upscale_mode use_beta_sigmas use_dynamic_shifting use_exponential_sigmas use_karras_sigmas
    use_lu_lambdas variance_type
    """.split()  # noqa: SIM905
)
# Of releases before 0.12, with no effect on the process either.
FORMER = ("predict_epsilon", "tensor_format", "timestep_values")
OTHER = ("prediction_type", "timestep_type", "use_flow_sigmas", "invert_sigmas", "sampled")
FEW_STEPS = {"lcm", "lightning", "schnell", "tcd", "turbo"}  # words in names
KNOWN = SAMPLING.union(FORMER, ZERO, EDM, OTHER)


@dataclass(frozen=True)
class Schedule:
    """One scheduler class of diffusers.

    Attributes:
        adapter: The parameterisation, by the name of its class.
        process: The settings that the process is made of.
        predictions: The prediction types understood.
        fixed: Settings that change the process, with the one value understood.
        distilled: Whether models under it were distilled for few steps.
    """

    adapter: Literal["DiscreteVP", "Karras", "Flow", "ScoreVE"] = "DiscreteVP"
    process: tuple[str, ...] = BETAS
    predictions: tuple[str, ...] = PREDICTIONS
    fixed: tuple[tuple[str, Any], ...] = ()
    distilled: bool = False


_DISCRETE = Schedule()
_PAIR = Schedule(predictions=PREDICTIONS[:2])
_ZERO = Schedule(process=ZERO)
_SOLVER = Schedule(predictions=(*PREDICTIONS, FLOW))
_ZERO_SOLVER = Schedule(process=ZERO, predictions=(*PREDICTIONS, FLOW))
_EULER = Schedule(process=(*ZERO, "timestep_type"))
_EDM = Schedule("Karras", EDM, ("epsilon", "v_prediction"))
_FLOW = Schedule("Flow", ("num_train_timesteps",), (), (("invert_sigmas", False),))
SCHEDULES: dict[str, Schedule] = {
    "DDPMScheduler": _ZERO,
    "DDPMParallelScheduler": _ZERO,
    "DDIMScheduler": _ZERO,
    "DDIMParallelScheduler": _ZERO,
    "PNDMScheduler": _PAIR,
    "LMSDiscreteScheduler": _DISCRETE,
    "EulerDiscreteScheduler": _EULER,
    "EulerAncestralDiscreteScheduler": Schedule(process=ZERO, predictions=PREDICTIONS[:2]),
    "HeunDiscreteScheduler": _DISCRETE,
    "KDPM2DiscreteScheduler": _PAIR,
    "KDPM2AncestralDiscreteScheduler": _PAIR,
    "DPMSolverSDEScheduler": _PAIR,
    "DPMSolverMultistepScheduler": _ZERO_SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "DEISMultistepScheduler": _SOLVER,
    "SASolverScheduler": _SOLVER,
    "UniPCMultistepScheduler": _ZERO_SOLVER,
    "LCMScheduler": Schedule(process=ZERO, distilled=True),
    "TCDScheduler": Schedule(process=ZERO, distilled=True),
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": replace(_FLOW, distilled=True),
    "ScoreSdeVeScheduler": Schedule("ScoreVE", ("sigma_min", "sigma_max"), ()),
}


def prediction_of(scheduler: Mapping[str, Any]) -> str:
    """The prediction type in a scheduler's configuration, also of diffusers' first releases."""
    if scheduler.get("predict_epsilon") is False:
        return "sample"
    return scheduler.get("prediction_type", "epsilon")


def signs_of_distillation(scheduler: Mapping[str, Any], names: Iterable[str]) -> str:
    """The reason why a model looks like one distilled for few steps; empty if there is none.

    Args:
        scheduler: Its scheduler's configuration.
        names: Names of the model: its hub id, folder or file, and those in its configurations.
    """
    schedule = SCHEDULES.get(str(scheduler.get("_class_name")))
    if schedule is not None and schedule.distilled:
        return f"its scheduler is {scheduler['_class_name']}"
    for name in names:
        if FEW_STEPS.intersection(re.split(r"[^a-z]+", name.lower())):
            return f"its name is {name}"
    return ""


def schedule_of(scheduler: Mapping[str, Any]) -> Schedule:
    """The class of a scheduler, every setting of its configuration accounted for.

    Raises:
        InstilError: The class is not read, or a setting that changes the process is not understood.
    """
    name = scheduler.get("_class_name")
    schedule = SCHEDULES.get(str(name))
    if schedule is None:
        raise InstilError(f"scheduler {name} is not supported; supported: {', '.join(SCHEDULES)}")
    prediction = prediction_of(scheduler)
    if schedule.predictions and prediction not in schedule.predictions:
        raise InstilError(
            f"scheduler {name} with prediction type {prediction!r} is not supported; supported: "
            f"{', '.join(schedule.predictions)}"
        )
    wanted = dict(schedule.fixed)
    if FLOW in schedule.predictions:  # either both or none of them
        wanted["use_flow_sigmas"] = prediction == FLOW
    for key, value in wanted.items():
        if scheduler.get(key, False) != value:
            raise InstilError(
                f"scheduler {name} with {key}={scheduler.get(key, False)!r}"
                f"{f' and prediction type {prediction!r}' if schedule.predictions else ''} "
                f"is not supported; expected {key}={value!r}"
            )
    for key, value in scheduler.items():
        if not (key.startswith("_") or key in KNOWN or value is None or value is False):
            raise InstilError(
                f"scheduler {name} with {key}={value!r}, which is not a setting of diffusers, is "
                "not supported; leave it out if the process does not depend on it"
            )
    return schedule
