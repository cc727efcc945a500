"""A student as a folder with a card, in plain diffusers' layout where one exists, else in ours."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instil.base.card import CARD, model_card
from instil.base.checkpoint import write_tensors
from instil.base.config import own
from instil.base.errors import InstilError
from instil.base.files import appearing, write_text
from instil.base.runs.report import write_json
from instil.base.untrusted import read_json
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.exploding import ScoreVE
from instructors.adapters.flow import Flow
from instructors.adapters.folder import is_ours, save
from instructors.adapters.karras import Karras
from instructors.denoiser import Denoiser
from instructors.families import FAMILIES
from instructors.low_rank import adapters, merged, portable
from students.few_step import FewStep
from students.gan.generator import GAN
from students.one_step import OneStep
from students.pretrained import Pretrained
from students.student import Student

USAGE = """\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
images = pipeline({arguments}num_inference_steps=1{further}).images
"""
LORA_USAGE = """\
import torch
from diffusers import DiffusionPipeline, {scheduler}

pipeline = DiffusionPipeline.from_pretrained("{instructor}")
pipeline.load_lora_weights("{folder}")
pipeline.scheduler = {scheduler}.from_pretrained("{folder}", subfolder="scheduler")
images = pipeline({arguments}num_inference_steps=1{further}).images
"""
# Diffusers has no class for this student.
OWN_USAGE = """\
from students.load import load
from students.source import Source

student = load(Source(weights="{folder}"{factory}))
images = student.sample(seeds=range(16))
"""
DENOISER = "denoiser.safetensors"  # of a network that no folder describes
ADAPTERS = "pytorch_lora_weights.safetensors"  # diffusers' name
LEVELS = "student.json"  # the noise levels a denoiser is read at, as `students.load` reads them


def export(
    student: Student, folder: Path, card: Mapping[str, Any], pipeline: Path | None = None
) -> None:
    """Write a student with a model card; an existing folder is replaced as a whole.

    Adapters become a file that the instructor's pipeline loads by `load_lora_weights`, with the
    scheduler beside it, or part of the weights where that pipeline loads none.

    Args:
        student: On the CPU or not; written as it is.
        folder: Where to.
        card: `instructor`, `licence`, `recipe` (YAML), `figures` ({name: text}), and of a refined
            generator `start`: what it was.
        pipeline: The instructor's folder: autoencoder and text encoders are taken from it.

    Raises:
        InstilError: The student's network has no layout.
    """
    loader = _lora_loader(student, pipeline)
    write = _lora_writer(student, loader) if loader else _writer(student, pipeline)
    with appearing(folder) as partial:
        write(partial)
        write_text(partial / CARD, _card(student, folder, card, bool(loader)))
        if levels := _levels(student):
            factory = {"factory": _factory(card)} if (partial / DENOISER).exists() else {}
            write_json(partial / LEVELS, {"sigmas": levels} | factory)


def _lora_loader(student: Student, pipeline: Path | None) -> Any:
    """The pipeline's class, if it loads the adapters that the student is made of."""
    if not isinstance(student, OneStep | FewStep) or not adapters(student):
        return None
    import diffusers  # seconds to import

    network: Any = student.denoiser.network
    family = FAMILIES.get(type(network).__name__)
    if family is None or not family.latent:
        return None
    kind = getattr(diffusers, _index(network, pipeline)["_class_name"])
    return kind if hasattr(kind, "save_lora_weights") else None


def _lora_writer(student: Any, loader: Any) -> Callable[[Path], Any]:
    """What writes adapters and scheduler."""
    denoiser = student.denoiser
    scheduler = _scheduler(denoiser.network, denoiser, _levels(student)[0])
    part = "unet" if hasattr(loader, "unet_name") else "transformer"

    def write(folder: Path) -> None:
        loader.save_lora_weights(folder, **{f"{part}_lora_layers": portable(denoiser)})
        scheduler.save_pretrained(folder / "scheduler")

    return write


def _writer(student: Student, pipeline: Path | None) -> Callable[[Path], Any]:
    """What writes the weights: the student itself, or the pipeline that is one."""
    if isinstance(student, Pretrained):
        return student.save_pretrained
    denoiser = student.denoiser if isinstance(student, OneStep | FewStep) else None
    if denoiser is not None and adapters(denoiser):
        denoiser = merged(denoiser)
    if denoiser is not None and is_ours(denoiser):
        return lambda folder: _save_own(folder, denoiser, pipeline)
    network: Any = getattr(denoiser, "network", None)
    family = FAMILIES.get(type(network).__name__)
    if denoiser is None:
        raise InstilError(f"export: no layout for a {type(student).__name__} student")
    if family is None:
        return lambda folder: write_tensors(folder / DENOISER, denoiser.state_dict())
    if isinstance(denoiser, Flow) and not family.latent:
        raise InstilError(
            f"export: no plain diffusers layout for a flow student with a "
            f"{type(network).__name__} network"
        )
    scheduler = _scheduler(network, denoiser, _levels(student)[0])
    if family.latent:
        return _of_instructor(network, scheduler, pipeline).save_pretrained
    return _of_network(network, scheduler, bool(student.classes)).save_pretrained


def _factory(card: Mapping[str, Any]) -> str | None:
    """The factory of the user's own that made the instructor, and makes the student's network."""
    return card["instructor"] if own.is_name(card["instructor"]) else None


def _save_own(folder: Path, denoiser: Denoiser, pipeline: Path | None) -> None:
    """In our layout, with the autoencoder of the instructor's folder if it has one."""
    save(folder, denoiser)
    if pipeline and (pipeline / "vae").is_dir():
        shutil.copytree(pipeline / "vae", folder / "vae")


def _levels(student: Student) -> tuple[float, ...]:
    """The noise levels a student's denoiser is read at; none if it has no denoiser."""
    if isinstance(student, OneStep):
        return (student.sigma,)
    return student.sigmas if isinstance(student, FewStep) else ()


def _scheduler(network: Any, denoiser: Denoiser, sigma: float) -> Any:
    """The stock scheduler whose single step is exactly D(start(z), sigma)."""
    from diffusers import (  # seconds to import
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EDMEulerScheduler,
        FlowMatchEulerDiscreteScheduler,
        ScoreSdeVeScheduler,
    )

    if isinstance(denoiser, Karras):
        return EDMEulerScheduler(
            sigma_min=denoiser.sigma_min, sigma_max=sigma, sigma_data=denoiser.sigma_data
        )
    if isinstance(denoiser, Flow):
        # Its step starts where the call's `sigmas` says, for which a shift would be in the way.
        return FlowMatchEulerDiscreteScheduler()
    if isinstance(denoiser, ScoreVE):
        # Its one step goes from sigma_max to no noise, uncorrected.
        return ScoreSdeVeScheduler(sigma_min=sigma, sigma_max=sigma, correct_steps=0)
    if not isinstance(denoiser, DiscreteVP):
        raise InstilError(
            f"export: no plain diffusers layout for a {type(denoiser).__name__} student"
        )
    # The schedule ends at the student's level, so that its one step starts there.
    last = int(denoiser.time(denoiser.log_sigmas.new_tensor([sigma])).round().item())
    alphas = (1 + (2 * denoiser.log_sigmas[: last + 1].double()).exp()).reciprocal()
    betas = 1 - alphas / alphas.roll(1).index_fill(0, alphas.new_zeros(1).long(), 1.0)
    schedule: dict[str, Any] = {
        "num_train_timesteps": last + 1,
        "trained_betas": betas.tolist(),
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # without effect under this spacing; some pipelines ask for it
        "prediction_type": denoiser.prediction,
    }
    if type(network).__name__ == "UNet2DModel" and _learned_variance(network):
        # The DDPM step would add noise of the learned variance. This one drops the variance, of
        # images with three channels, and its first-order step to no noise is D itself.
        if denoiser.shape[0] != 3:
            raise InstilError(
                f"export: a learned variance beside {denoiser.shape[0]} channels has no plain "
                "diffusers layout, which knows it for three"
            )
        return DPMSolverMultistepScheduler(
            variance_type="learned_range", solver_order=1, final_sigmas_type="zero", **schedule
        )
    return DDPMScheduler(variance_type="fixed_small", clip_sample=False, **schedule)


def _of_network(network: Any, scheduler: Any, conditional: bool) -> Any:
    """A stock pipeline of network and scheduler alone."""
    from diffusers import (
        ConsistencyModelPipeline,
        DDPMPipeline,
        EDMEulerScheduler,
        ScoreSdeVePipeline,
        ScoreSdeVeScheduler,
    )

    if isinstance(scheduler, ScoreSdeVeScheduler):
        if conditional:
            raise InstilError("export: no plain diffusers layout for a ScoreVE student of classes")
        return ScoreSdeVePipeline(network, scheduler)
    # The only stock pipeline that passes class labels, or scales as EDM; its scheduler may be any.
    classes: Any = ConsistencyModelPipeline
    edm = isinstance(scheduler, EDMEulerScheduler)
    return (classes if conditional or edm else DDPMPipeline)(network, scheduler)


def _of_instructor(network: Any, scheduler: Any, folder: Path | None) -> Any:
    """The instructor's own pipeline with this network and scheduler."""
    import diffusers

    content = _index(network, folder)
    part = "unet" if "unet" in content else "transformer"
    try:
        return getattr(diffusers, content["_class_name"]).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            **{part: network, "scheduler": scheduler},
        )
    except Exception as error:  # missing packages and files surface as a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(
            f"export: the instructor's pipeline cannot be loaded ({reason})"
        ) from None


def _index(network: Any, folder: Path | None) -> dict[str, Any]:
    """What the instructor's pipeline is made of."""
    index = folder / "model_index.json" if folder else None
    if index is None or not index.exists():
        raise InstilError(
            f"export: a {type(network).__name__} needs the autoencoder of its pipeline; "
            "expected an instructor with a model_index.json"
        )
    return read_json(index)


def _learned_variance(network: Any) -> bool:
    return network.config.out_channels == 2 * network.config.in_channels


def _arguments(student: OneStep | FewStep) -> dict[str, str]:
    """The arguments of the pipeline's call, in words."""
    denoiser, first = student.denoiser, _levels(student)[0]
    u = first / (1 + first)
    further = f", sigmas=[{u:.6g}]" if isinstance(denoiser, Flow) else ""
    if denoiser.text:
        guidance = "" if "guidance" in denoiser.text else ", guidance_scale=1.0"
        return {"arguments": '"a photograph of a fox", ', "further": guidance + further}
    if FAMILIES[type(denoiser.network).__name__].latent:
        labels = f"class_labels=[k % {student.classes} for k in range(16)], "
        return {"arguments": labels, "further": ", guidance_scale=1.0" + further}
    labels = f", class_labels=torch.arange(16) % {student.classes}" if student.classes else ""
    return {"arguments": "batch_size=16, ", "further": labels}


def _card(student: Student, folder: Path, card: Mapping[str, Any], lora: bool) -> str:
    plain = (
        isinstance(student, OneStep)
        and not is_ours(student.denoiser)
        and type(student.denoiser.network).__name__ in FAMILIES
    )
    if isinstance(student, OneStep | FewStep) and lora:
        denoiser: Any = student.denoiser
        scheduler = type(_scheduler(denoiser.network, denoiser, _levels(student)[0])).__name__
        names = {"scheduler": scheduler, "instructor": card["instructor"], "folder": folder.name}
        usage = LORA_USAGE.format(**names, **_arguments(student))
    elif isinstance(student, OneStep) and plain:
        usage = USAGE.format(folder=folder.name, **_arguments(student))
    else:
        named = student.factory if isinstance(student, GAN) else _factory(card)
        factory = f', factory="{named}"' if named else ""
        usage = OWN_USAGE.format(folder=folder.name, factory=factory)
    origin = "Distilled"
    if "start" in card:
        origin = f"`{card['start']}` (its licence holds as well) refined"
    levels = ", ".join(f"{sigma:g}" for sigma in _levels(student))
    steps = f"at sigma {levels}" if levels else "per image"
    if isinstance(student, FewStep):
        steps += "; plain diffusers loads it as well and takes the first of them alone"
    figures = "\n".join(f"| {name} | {value} |" for name, value in card["figures"].items())
    steps_word = "one" if student.nfe == 1 else student.nfe
    text = f"""\
{origin} without data from `{card["instructor"]}` by Diff-Instruct (arXiv 2305.18455);
{student.nfe} network evaluation{"s" * (student.nfe > 1)} {steps}. Licence of the instructor, and so
of this model: {card["licence"]}.

```python
{usage}```

| figure | value |
| --- | --- |
{figures}

Recipe:

```yaml
{card["recipe"]}```
"""
    return model_card(
        f"{folder.resolve().parent.name}: a {steps_word}-step generator",
        text,
        card["licence"],
        ("one-step" if student.nfe == 1 else "few-step", "distillation", "data-free"),
        "diffusers" if plain else "instil",
    )
