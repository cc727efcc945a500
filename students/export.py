"""A student as a folder with a card, in plain diffusers' layout where one exists, else in ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from instil.errors import InstilError
from instil.report import write_json
from instructors.denoiser import Denoiser
from instructors.discrete import DiscreteVP
from instructors.folder import appearing, is_ours, save
from instructors.karras import Karras
from students.few_step import FewStep
from students.gan import GAN
from students.one_step import OneStep
from students.pretrained import Pretrained
from students.student import Student

USAGE = """\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
images = pipeline(batch_size=16, num_inference_steps=1{labels}).images
"""
# Diffusers has no class for this student.
OWN_USAGE = """\
from students.load import load
from students.source import Source

student = load(Source(weights="{folder}"{factory}))
images = student.sample(seeds=range(16))
"""
LEVELS = "student.json"  # the noise levels a denoiser is read at, as `students.load` reads them


def export(student: Student, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a student with a model card; an existing folder is replaced as a whole.

    Args:
        student: On the CPU or not; written as it is.
        folder: Where to.
        card: `instructor`, `licence`, `recipe` (YAML), `figures` ({name: text}), and of a refined
            generator `start`: what it was.

    Raises:
        InstilError: The student's network has no layout.
    """
    write = _writer(student)
    with appearing(folder) as partial:
        _card(student, folder, card).save(partial / "README.md")
        write(partial)
        if levels := _levels(student):
            write_json(partial / LEVELS, {"sigmas": levels})


def _writer(student: Student) -> Callable[[Path], Any]:
    """What writes the weights: the student itself, or the pipeline that is one."""
    from diffusers import UNet2DModel  # seconds to import

    if isinstance(student, Pretrained):
        return student.save_pretrained
    denoiser = student.denoiser if isinstance(student, OneStep | FewStep) else None
    if denoiser is not None and is_ours(denoiser):
        return lambda folder: save(folder, denoiser)
    network = getattr(denoiser, "network", None)
    if denoiser is None or not isinstance(network, UNet2DModel):
        raise InstilError(
            f"export: no plain diffusers layout for a {type(student).__name__} student "
            f"with a {type(network).__name__} network"
        )
    first = _levels(student)[0]
    return _pipeline(network, denoiser, first, bool(student.classes)).save_pretrained


def _levels(student: Student) -> tuple[float, ...]:
    """The noise levels a student's denoiser is read at; none if it has no denoiser."""
    if isinstance(student, OneStep):
        return (student.sigma,)
    return student.sigmas if isinstance(student, FewStep) else ()


def _pipeline(network: Any, denoiser: Denoiser, sigma: float, conditional: bool) -> Any:
    """The stock pipeline and scheduler whose single step is exactly D(start(z), sigma)."""
    from diffusers import (
        ConsistencyModelPipeline,
        DDPMPipeline,
        DDPMScheduler,
        EDMEulerScheduler,
    )

    # The only stock pipeline that passes class labels; its scheduler may be any.
    classes: Any = ConsistencyModelPipeline
    if isinstance(denoiser, Karras):
        scheduler: Any = EDMEulerScheduler(
            sigma_min=denoiser.sigma_min, sigma_max=sigma, sigma_data=denoiser.sigma_data
        )
        return classes(network, scheduler)
    if isinstance(denoiser, DiscreteVP):
        # The schedule ends at the student's level, so that its one step starts there.
        last = int(denoiser.time(denoiser.log_sigmas.new_tensor([sigma])).round().item())
        alphas = (1 + (2 * denoiser.log_sigmas[: last + 1].double()).exp()).reciprocal()
        betas = 1 - alphas / alphas.roll(1).index_fill(0, alphas.new_zeros(1).long(), 1.0)
        scheduler = DDPMScheduler(
            num_train_timesteps=last + 1,
            trained_betas=betas.tolist(),
            timestep_spacing="trailing",
            prediction_type=denoiser.prediction,
            variance_type="fixed_small",
            clip_sample=False,
        )
        return (classes if conditional else DDPMPipeline)(network, scheduler)
    raise InstilError(f"export: no plain diffusers layout for a {type(denoiser).__name__} student")


def _card(student: Student, folder: Path, card: Mapping[str, Any]) -> ModelCard:
    plain = isinstance(student, OneStep) and not is_ours(student.denoiser)
    metadata = ModelCardData(
        license=card["licence"] if card["licence"] != "unknown" else None,
        library_name="diffusers" if plain else "instil",
        tags=["one-step" if student.nfe == 1 else "few-step", "distillation", "data-free"],
    )
    if not plain:
        factory = f', factory="{student.factory}"' if isinstance(student, GAN) else ""
        usage = OWN_USAGE.format(folder=folder.name, factory=factory)
    else:
        labels = f", class_labels=torch.arange(16) % {student.classes}" if student.classes else ""
        usage = USAGE.format(folder=folder.name, labels=labels)
    origin = "Distilled"
    if "start" in card:
        origin = f"`{card['start']}` (its licence holds as well) refined"
    levels = ", ".join(f"{sigma:g}" for sigma in _levels(student))
    steps = f"at sigma {levels}" if levels else "per image"
    if isinstance(student, FewStep):
        steps += "; plain diffusers loads it as well and takes the first of them alone"
    figures = "\n".join(f"| {name} | {value} |" for name, value in card["figures"].items())
    return ModelCard(
        f"""---
{metadata.to_yaml()}
---

# {folder.resolve().parent.name}: a {"one" if student.nfe == 1 else student.nfe}-step generator

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
    )
