"""A student as a folder with a card, in plain diffusers' layout where one exists, else in ours."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from instil.base.card import CARD, model_card
from instil.base.checkpoint import write_tensors
from instil.base.config import own
from instil.base.errors import InstilError
from instil.base.files import appearing, write_text
from instil.base.runs.report import write_json
from instil.base.untrusted import read_json
from instructors.adapters.adapter import Adapter
from instructors.adapters.folder import save
from instructors.denoiser import Denoiser
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
import instil

student = instil.load_student("{folder}"{factory})
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
    denoiser = student.denoiser
    if not _in_diffusers(denoiser) or not denoiser.family.latent:
        return None
    import diffusers  # seconds to import

    kind = getattr(diffusers, _index(denoiser, pipeline)["_class_name"])
    return kind if hasattr(kind, "save_lora_weights") else None


def _lora_writer(student: Any, loader: Any) -> Callable[[Path], Any]:
    """The function that writes adapters and scheduler into a folder."""
    denoiser = student.denoiser
    scheduler = denoiser.scheduler(_levels(student)[0])
    part = "unet" if hasattr(loader, "unet_name") else "transformer"

    def write(folder: Path) -> None:
        loader.save_lora_weights(folder, **{f"{part}_lora_layers": portable(denoiser)})
        scheduler.save_pretrained(folder / "scheduler")

    return write


def _writer(student: Student, pipeline: Path | None) -> Callable[[Path], Any]:
    """The function that writes the weights into a folder."""
    if isinstance(student, Pretrained):
        return student.save_pretrained
    if not isinstance(student, OneStep | FewStep):
        raise InstilError(f"export: no layout for a {type(student).__name__} student")
    denoiser: Any = merged(student.denoiser) if adapters(student.denoiser) else student.denoiser
    if not isinstance(denoiser, Adapter) or not denoiser.family.name:
        return lambda folder: write_tensors(folder / DENOISER, denoiser.state_dict())
    if not _in_diffusers(denoiser):
        return lambda folder: _save_own(folder, denoiser, pipeline)
    sigma = _levels(student)[0]
    if denoiser.family.latent:
        return _of_instructor(denoiser, sigma, pipeline).save_pretrained
    return denoiser.pipeline(sigma).save_pretrained


def _in_diffusers(denoiser: Denoiser) -> TypeGuard[Adapter]:
    """Whether diffusers has the network and what stands around it."""
    return isinstance(denoiser, Adapter) and denoiser.in_diffusers and denoiser.family.in_diffusers


def _factory(card: Mapping[str, Any]) -> str | None:
    """The factory of the user's own that made the instructor, and makes the student's network."""
    return card["instructor"] if own.is_name(card["instructor"]) else None


def _save_own(folder: Path, denoiser: Adapter, pipeline: Path | None) -> None:
    """In our layout, with the autoencoder of the instructor's folder if it has one."""
    save(folder, denoiser)
    if pipeline and (pipeline / "vae").is_dir():
        shutil.copytree(pipeline / "vae", folder / "vae")


def _levels(student: Student) -> tuple[float, ...]:
    """The noise levels a student's denoiser is read at; none if it has no denoiser."""
    if isinstance(student, OneStep):
        return (student.sigma,)
    return student.sigmas if isinstance(student, FewStep) else ()


def _of_instructor(denoiser: Adapter, sigma: float, folder: Path | None) -> Any:
    """The instructor's own pipeline with the student's network, read once at sigma."""
    import diffusers  # seconds to import

    content, scheduler = _index(denoiser, folder), denoiser.scheduler(sigma)
    part = "unet" if "unet" in content else "transformer"
    try:
        return getattr(diffusers, content["_class_name"]).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            **{part: denoiser.network, "scheduler": scheduler},
        )
    except Exception as error:  # missing packages and files surface as a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(
            f"export: the instructor's pipeline cannot be loaded ({reason})"
        ) from error


def _index(denoiser: Denoiser, folder: Path | None) -> dict[str, Any]:
    """The index of the instructor's pipeline."""
    index = folder / "model_index.json" if folder else None
    if index is None or not index.exists():
        raise InstilError(
            f"export: a {type(denoiser.network).__name__} needs the autoencoder of its pipeline; "
            "expected an instructor with a model_index.json"
        )
    return read_json(index)


def _arguments(student: OneStep | FewStep) -> dict[str, str]:
    """The arguments of the pipeline's call, as code: before and after the number of steps."""
    denoiser: Any = student.denoiser
    further = denoiser.call_arguments(_levels(student)[0])
    if denoiser.text:
        guidance = "" if "guidance" in denoiser.text else ", guidance_scale=1.0"
        return {"arguments": '"a photograph of a fox", ', "further": guidance + further}
    if denoiser.family.latent:
        labels = f"class_labels=[k % {student.classes} for k in range(16)], "
        return {"arguments": labels, "further": ", guidance_scale=1.0" + further}
    labels = f", class_labels=torch.arange(16) % {student.classes}" if student.classes else ""
    return {"arguments": "batch_size=16, ", "further": labels}


def _card(student: Student, folder: Path, card: Mapping[str, Any], lora: bool) -> str:
    plain = isinstance(student, OneStep) and _in_diffusers(student.denoiser)
    if isinstance(student, OneStep | FewStep) and lora:
        denoiser: Any = student.denoiser
        scheduler = type(denoiser.scheduler(_levels(student)[0])).__name__
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
