"""A student as a folder with a card, in plain diffusers' layout where one exists, else in ours."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from instil.base.card import CARD, model_card
from instil.base.checkpoint import write_tensors
from instil.base.config import own
from instil.base.errors import InstilError
from instil.base.files import appearing, write_text
from instil.base.runs.report import write_json
from instructors.adapters.adapter import Adapter
from instructors.adapters.folder import save
from instructors.files.pipelines import names_checker
from instructors.files.source import Source
from instructors.layout import has_folder, in_diffusers, pipeline_of, read_index, side_of
from instructors.layout import rehearse as rehearse_denoiser
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

pipeline = DiffusionPipeline.from_pretrained({instructor})
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
        checked = pipeline is not None and names_checker(pipeline)
        write_text(partial / CARD, _card(student, folder, card, bool(loader), checked))
        if levels := _levels(student):
            more = {"factory": _factory(card)} if (partial / DENOISER).exists() else {}
            if side := side_of(cast(Any, student).denoiser):
                more |= {"side": side}
            write_json(partial / LEVELS, {"sigmas": levels} | more)


def rehearse(student: Student, pipeline: Path | None = None) -> None:
    """Refuse a student that could not be exported, without reading or writing weights.

    Args:
        student: Before its training; on the meta device or not.
        pipeline: The instructor's folder.

    Raises:
        InstilError: There is no layout, or what would be written could not be loaded or drawn.
    """
    if isinstance(student, OneStep | FewStep):
        rehearse_denoiser(student.denoiser, _levels(student)[0], pipeline)
    elif not isinstance(student, Pretrained):
        raise _no_layout(student)


def _no_layout(student: Student) -> InstilError:
    return InstilError(
        f"export: no layout for a {type(student).__name__} student; derive its class from "
        "students.pretrained.Pretrained as well"
    )


def _lora_loader(student: Student, pipeline: Path | None) -> Any:
    """The pipeline's class, if it loads the adapters that the student is made of."""
    if not isinstance(student, OneStep | FewStep) or not adapters(student):
        return None
    denoiser = student.denoiser
    if not in_diffusers(denoiser) or not denoiser.family.latent:
        return None
    import diffusers  # seconds to import

    kind = getattr(diffusers, read_index(denoiser, pipeline)["_class_name"])
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
        raise _no_layout(student)
    denoiser: Any = merged(student.denoiser) if adapters(student.denoiser) else student.denoiser
    if not has_folder(denoiser):
        return lambda folder: write_tensors(folder / DENOISER, denoiser.state_dict())
    if not in_diffusers(denoiser):
        return lambda folder: _save_own(folder, denoiser, pipeline)
    return pipeline_of(denoiser, _levels(student)[0], pipeline).save_pretrained


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


def _arguments(student: OneStep | FewStep) -> dict[str, str]:
    """The arguments of the pipeline's call, as code: before and after the number of steps."""
    denoiser: Any = student.denoiser
    further = denoiser.call_arguments(_levels(student)[0])
    if denoiser.text:
        guidance = "" if "guidance" in denoiser.text else ", guidance_scale=1.0"
        if side := side_of(denoiser):
            pixels = side * (32 if "AutoencoderDC" in denoiser.family.autoencoders else 8)
            guidance += f", height={pixels}, width={pixels}"
        return {"arguments": '"a photograph of a fox", ', "further": guidance + further}
    if denoiser.family.latent and student.classes:
        labels = f"class_labels=[k % {student.classes} for k in range(16)], "
        return {"arguments": labels, "further": ", guidance_scale=1.0" + further}
    labels = f", class_labels=torch.arange(16) % {student.classes}" if student.classes else ""
    return {"arguments": "batch_size=16, ", "further": labels}


def _card(
    student: Student, folder: Path, card: Mapping[str, Any], lora: bool, checked: bool
) -> str:
    plain = isinstance(student, OneStep) and in_diffusers(student.denoiser)
    if isinstance(student, OneStep | FewStep) and lora:
        denoiser: Any = student.denoiser
        scheduler = type(denoiser.scheduler(_levels(student)[0])).__name__
        source = Source.parse(card["instructor"]).arguments
        names = {"scheduler": scheduler, "instructor": source, "folder": folder.name}
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
    licence = f"Licence of the instructor, and so of this model: {card['licence']}."
    if checked and not lora:
        licence += " The instructor's safety checker is left out."
    figures = "\n".join(f"| {name} | {value} |" for name, value in card["figures"].items())
    steps_word = "one" if student.nfe == 1 else student.nfe
    text = f"""\
{origin} without data from `{card["instructor"]}` by Diff-Instruct (arXiv 2305.18455);
{student.nfe} network evaluation{"s" * (student.nfe > 1)} {steps}. {licence}

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
