"""A student's denoiser in a layout that can be loaded again, and the rehearsal of it."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from instil.base.errors import InstilError
from instil.base.untrusted import read_json
from instructors.adapters.adapter import Adapter
from instructors.adapters.folder import save
from instructors.denoiser import Denoiser, class_labels
from instructors.files.models import read_model
from instructors.files.pipelines import (
    NETWORKS,
    class_of,
    is_model,
    no_bars,
    parts_of,
    read_pipeline,
)
from instructors.files.sources import ARCHITECTURES
from instructors.files.weights import format_of
from instructors.load import load
from instructors.low_rank import adapters

IMAGES, SEED = 2, 5  # drawn by the rehearsal
MOST_APART = 1e-3  # between two images in [0, 1]
FACTS = ("prediction", "shape", "classes", "learned_variance")


def in_diffusers(denoiser: Denoiser) -> TypeGuard[Adapter]:
    """Whether diffusers has the network and a scheduler for it."""
    return isinstance(denoiser, Adapter) and denoiser.in_diffusers and denoiser.family.in_diffusers


def has_folder(denoiser: Denoiser) -> TypeGuard[Adapter]:
    """Whether a folder can describe the denoiser; otherwise its tensors are saved alone."""
    return isinstance(denoiser, Adapter) and bool(denoiser.family.name)


def side_of(denoiser: Denoiser) -> int | None:
    """Height and width of a sample, where the network's configuration says another or none."""
    named = getattr(getattr(denoiser.network, "config", None), "sample_size", None)
    latent = has_folder(denoiser) and denoiser.family.latent
    return denoiser.shape[-1] if latent and named != denoiser.shape[-1] else None


def read_index(denoiser: Denoiser, folder: Path | None) -> dict[str, Any]:
    """The `model_index.json` of the instructor's pipeline.

    Raises:
        InstilError: There is none.
    """
    index = folder / "model_index.json" if folder else None
    if index is None or not index.exists():
        raise InstilError(
            f"export: a {type(denoiser.network).__name__} needs the autoencoder of its pipeline; "
            "expected an instructor with a model_index.json"
        )
    return read_json(index)


def pipeline_of(
    denoiser: Adapter, sigma: float, folder: Path | None, parts: Mapping[str, Any] | None = None
) -> Any:
    """The diffusers pipeline that reads a denoiser once.

    Args:
        denoiser: One that `in_diffusers`.
        sigma: The level it is read at.
        folder: The instructor's pipeline, of which a network of latents takes everything else.
        parts: Components to use instead of those in the folder.

    Raises:
        InstilError: There is no such pipeline, or it cannot be loaded.
    """
    if not denoiser.family.latent:
        return denoiser.pipeline(sigma)
    content = read_index(denoiser, folder)
    part = next(name for name in NETWORKS if name in content)
    given = {part: denoiser.network, "scheduler": denoiser.scheduler(sigma)} | dict(parts or {})
    try:
        return read_pipeline(Path(str(folder)), given)
    except InstilError as error:
        raise InstilError(f"export: {error}") from error


def rehearse(denoiser: Denoiser, sigma: float, folder: Path | None) -> None:
    """Refuse a denoiser that a student could not be exported as; no weights are read or written.

    Configurations are written to a scratch folder and read again. Where a pipeline makes images of
    nothing but the network, a stand-in without weights takes the network's place, and the images
    are compared.

    Args:
        denoiser: The student's; its network may be on the meta device.
        sigma: The level it is read at.
        folder: The instructor's folder.

    Raises:
        InstilError: It cannot be saved, loaded again, or drawn by the pipeline.
    """
    if not has_folder(denoiser):
        return
    network: Any = denoiser.network
    noted = bool(folder) and ARCHITECTURES in Path(folder).parents  # shapes without a pipeline
    with tempfile.TemporaryDirectory() as scratch:
        where, pipeline = Path(scratch), None
        if not in_diffusers(denoiser):
            save(where, denoiser, weights=False)
        else:
            if not (noted and denoiser.family.latent):
                pipeline = pipeline_of(denoiser, sigma, folder, _parts(denoiser, folder))
                pipeline.save_config(where)
            part = "unet" if hasattr(pipeline, "unet") else "transformer"
            network.save_config(where / part)
            denoiser.scheduler(sigma).save_pretrained(where / "scheduler")
        try:
            again = load(scratch, side_of(denoiser), weights=False).denoiser
        except InstilError as error:
            reason = str(error).removeprefix(f"{scratch}: ")
            raise InstilError(
                f"export: the student could not be loaded again ({reason}); choose another "
                "instructor"
            ) from None
        _compare(denoiser, again)
        if pipeline and not denoiser.family.latent:
            _draw(denoiser, again.network, sigma, where)


def _parts(denoiser: Adapter, folder: Path | None) -> dict[str, Any]:
    """The networks of the instructor's pipeline without weights, beside the denoiser's own."""
    if not denoiser.family.latent:
        return {}
    parts: dict[str, Any] = {}
    read = next(denoiser.parameters()).device.type != "meta"  # so weights should lie there
    for name, (library, kind) in parts_of(read_index(denoiser, folder)).items():
        where = Path(str(folder)) / name
        if name in (*NETWORKS, "scheduler"):
            continue
        try:
            made = class_of(library, kind)
            if not (where.is_dir() or read):
                parts[name] = None  # only what a plan needs was downloaded
            elif is_model(made):
                parts[name] = read_model(where, kind, False, library)
                if read:
                    format_of(where)
        except InstilError as error:
            raise InstilError(f"export: {name}: {error}; download the whole pipeline") from None
    return parts


def _compare(denoiser: Adapter, again: Denoiser) -> None:
    """Refuse a denoiser that its folder describes otherwise."""
    wanted, found = _facts(denoiser), _facts(again)
    if adapters(denoiser):  # the names of its tensors are other ones until they are merged
        wanted, found = ({key: facts[key] for key in FACTS} for facts in (wanted, found))
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InstilError(
                f"export: the student would be loaded with {name} {found.get(name)}, and has "
                f"{wanted.get(name)}; choose an instructor whose configuration says so"
            )


def _facts(denoiser: Denoiser) -> dict[str, Any]:
    facts = {key: getattr(denoiser, key) for key in FACTS}
    if "label" in denoiser.null_names:  # the label without a class, which a recipe may have named
        facts["classes"] += 1
    return facts | {key: tuple(value.shape) for key, value in denoiser.state_dict().items()}


@torch.no_grad()
def _draw(denoiser: Adapter, stand_in: Any, sigma: float, folder: Path) -> None:
    """Refuse a denoiser whose pipeline makes other images than it does."""
    from diffusers import DiffusionPipeline  # seconds to import

    kind = type(stand_in)
    stand_in.__class__ = type(kind.__name__, (kind,), _STAND_IN)
    stand_in._modules.clear()  # so that nothing of it is on the meta device
    stand_in._parameters.clear()
    network = denoiser.network
    ours: Any = copy.deepcopy(denoiser, {id(network): stand_in}).cpu()
    unit = torch.randn(IMAGES, *denoiser.shape, generator=torch.Generator().manual_seed(SEED))
    label = class_labels(denoiser.classes, torch.arange(IMAGES) % max(1, denoiser.classes))
    wanted = ours(ours.start(unit, sigma), unit.new_full((IMAGES,), sigma), label)
    wanted = wanted if denoiser.unit_range else wanted / 2 + 0.5
    labels = {"class_labels": label["label"]} if denoiser.classes else {}
    name = ""
    try:
        with no_bars():
            pipeline: Any = DiffusionPipeline.from_pretrained(folder, unet=stand_in)
        name = type(pipeline).__name__
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            batch_size=IMAGES,
            num_inference_steps=1,
            output_type="np",
            generator=torch.Generator().manual_seed(SEED),
            **labels,
        ).images
        found = torch.from_numpy(images).permute(0, 3, 1, 2)
        apart = (found - wanted.clamp(0, 1)).abs().max().item()
        reason = "" if apart <= MOST_APART else f"they differ by {apart:.3g}"
    except Exception as error:  # of shapes that it does not make, in a dozen kinds
        reason = " ".join(str(error).split())[:200]
    if reason:
        raise InstilError(
            f"export: diffusers' {name or 'pipeline'} does not draw the images {denoiser.shape} of "
            f"this student ({reason}); choose an instructor of square colour images"
        )


def _forward(
    network: Any,
    sample: Tensor,
    timestep: Any,
    class_labels: Any = None,
    return_dict: bool = True,
    **_: Any,
) -> Any:
    """A cheap function of everything that a network is given."""
    time = torch.as_tensor(timestep, dtype=sample.dtype).reshape(-1, 1, 1, 1)
    value = 0.7 * sample + 0.1 * time.sin()
    if class_labels is not None:
        value = value + 0.1 * class_labels.reshape(-1, 1, 1, 1)
    value = torch.cat([value] * (network.config.out_channels // sample.shape[1]), dim=1)
    return SimpleNamespace(sample=value) if return_dict else (value,)


_STAND_IN = {"forward": _forward, "device": torch.device("cpu"), "dtype": torch.float32}
