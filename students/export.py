"""A one-step student as a folder that plain diffusers loads and samples in one step.

Where diffusers lacks the network or what stands around it, the folder is of the same layout and
`instructors.load` reads it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from instil.errors import InstilError
from instructors.denoiser import Denoiser
from instructors.discrete import DiscreteVP
from instructors.folder import appearing, is_ours, save
from instructors.karras import Karras
from students.one_step import OneStep
from students.student import Student

USAGE = """\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
images = pipeline(batch_size=16, num_inference_steps=1{labels}).images
"""
# Diffusers has no class for this student.
OWN_USAGE = """\
import torch
from instructors.denoiser import class_labels
from instructors.load import load
from students.one_step import OneStep

student = OneStep(load("{folder}").denoiser, {sigma})
labels = class_labels(student.classes, torch.arange(16))
images = student((torch.randn(16, *student.shape),), labels)
"""


def export(student: Student, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a pipeline with a model card; an existing folder is replaced as a whole.

    Args:
        student: On the CPU or not; written as it is.
        folder: Where to.
        card: `instructor`, `licence`, `recipe` (YAML), `figures` ({name: text}).

    Raises:
        InstilError: The student's network has no layout.
    """
    if isinstance(student, OneStep) and is_ours(student.denoiser):
        with appearing(folder) as partial:
            save(partial, student.denoiser)
            _card(student, folder, card).save(partial / "README.md")
        return
    from diffusers import UNet2DModel  # seconds to import

    network = getattr(student.denoiser, "network", None) if isinstance(student, OneStep) else None
    if not isinstance(student, OneStep) or not isinstance(network, UNet2DModel):
        raise InstilError(
            f"export: no plain diffusers layout for a {type(student).__name__} student "
            f"with a {type(network).__name__} network"
        )
    pipeline = _pipeline(network, student.denoiser, student.sigma, bool(student.classes))
    with appearing(folder) as partial:
        pipeline.save_pretrained(partial)
        _card(student, folder, card).save(partial / "README.md")


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


def _card(student: OneStep, folder: Path, card: Mapping[str, Any]) -> ModelCard:
    ours = is_ours(student.denoiser)
    metadata = ModelCardData(
        license=card["licence"] if card["licence"] != "unknown" else None,
        library_name="instil" if ours else "diffusers",
        tags=["one-step", "distillation", "data-free"],
    )
    labels = f", class_labels=torch.arange(16) % {student.classes}" if student.classes else ""
    usage = (OWN_USAGE if ours else USAGE).format(
        folder=folder.name, labels=labels, sigma=student.sigma
    )
    figures = "\n".join(f"| {name} | {value} |" for name, value in card["figures"].items())
    return ModelCard(
        f"""---
{metadata.to_yaml()}
---

# {folder.resolve().parent.name}: a one-step generator

Distilled without data from `{card["instructor"]}` by Diff-Instruct (arXiv 2305.18455); one network
evaluation at sigma {student.sigma:g}. Licence of the instructor, and so of this model:
{card["licence"]}.

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
