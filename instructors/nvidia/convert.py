"""`python -m instructors convert`: a pickle of EDM or EDM2 becomes safetensors and JSON."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instil.base import __version__
from instil.base.card import FEW_STEP_TAG, model_card
from instil.base.errors import InstilError
from instil.base.files import appearing, write_text
from instructors.adapters import folder
from instructors.files.models import read_autoencoder
from instructors.nvidia.checkpoint import Checkpoint, read_checkpoint

SERVER = "https://nvlabs-fi-cdn.nvidia.com"
# NVIDIA's: code and weights, https://github.com/NVlabs/edm#license and edm2#license;
# non-commercial, and what is made of them is shared alike.
LICENCE = "cc-by-nc-sa-4.0"
# Folder below SERVER and file: FID as stated in arXiv 2206.00364, table 2 (config F), and of its
# abstract; the other baselines are networks of earlier papers, with one figure per sampler. Of EDM2
# without guidance, arXiv 2312.02696, tables 2 and 3.
PUBLISHED: dict[str, dict[str, str]] = {
    "edm/pretrained": {
        "edm-cifar10-32x32-cond-vp.pkl": "1.79 with 35 evaluations",
        "edm-cifar10-32x32-cond-ve.pkl": "1.79 with 35 evaluations",
        "edm-cifar10-32x32-uncond-vp.pkl": "1.97 with 35 evaluations",
        "edm-cifar10-32x32-uncond-ve.pkl": "1.98 with 35 evaluations",
        "edm-ffhq-64x64-uncond-vp.pkl": "2.39 with 79 evaluations",
        "edm-ffhq-64x64-uncond-ve.pkl": "2.53 with 79 evaluations",
        "edm-afhqv2-64x64-uncond-vp.pkl": "1.96 with 79 evaluations",
        "edm-afhqv2-64x64-uncond-ve.pkl": "2.16 with 79 evaluations",
        "edm-imagenet-64x64-cond-adm.pkl": "1.36 with 511 evaluations, stochastic",
    },
    "edm/pretrained/baseline": {
        "baseline-cifar10-32x32-uncond-vp.pkl": "",
        "baseline-cifar10-32x32-uncond-ve.pkl": "",
        "baseline-imagenet-64x64-cond-adm.pkl": "1.55, stochastic",
    },
    "edm2/posthoc-reconstructions": {
        "edm2-img512-xs-2147483-0.135.pkl": "3.53 with 63 evaluations",
        "edm2-img512-s-2147483-0.130.pkl": "2.56 with 63 evaluations",
        "edm2-img512-m-2147483-0.100.pkl": "2.25 with 63 evaluations",
        "edm2-img512-l-1879048-0.085.pkl": "2.06 with 63 evaluations",
        "edm2-img512-xl-1342177-0.085.pkl": "1.96 with 63 evaluations",
        "edm2-img512-xxl-0939524-0.070.pkl": "1.91 with 63 evaluations",
        "edm2-img64-s-1073741-0.075.pkl": "1.58 with 63 evaluations",
        "edm2-img64-m-2147483-0.060.pkl": "1.43 with 63 evaluations",
        "edm2-img64-l-1073741-0.040.pkl": "1.33 with 63 evaluations",
        "edm2-img64-xl-0671088-0.040.pkl": "1.33 with 63 evaluations",
    },
}


def convert(path: Path, out: Path, vae: str | None = None) -> dict[str, Any]:
    """Convert a checkpoint; nothing in it is executed.

    Args:
        path: Of the pickle.
        out: Folder for the result, which `instructors.load.load` opens; must not exist.
        vae: Folder of the `AutoencoderKL` that belongs to a model of latents; None of images.

    Returns:
        What was found: network, parameters, shape, classes, noise levels, licence, digest.

    Raises:
        InstilError: `out` exists, the file is refused, or the autoencoder is missing, not asked
            for, or has other latents.
        OSError: `out` cannot be written.
    """
    if out.exists():
        raise InstilError(f"{out}: exists already; name a new folder with --out")
    autoencoder = read_autoencoder(vae, ("AutoencoderKL",)) if vae else None
    checkpoint = read_checkpoint(path)
    denoiser: Any = checkpoint.denoiser
    if checkpoint.latents and autoencoder is None:
        raise InstilError(
            f"{path}: a model of latents; name the folder of its autoencoder with --vae "
            "(`hf download stabilityai/sd-vae-ft-mse --local-dir DIR` makes one)"
        )
    if autoencoder is not None:
        _tell(path, autoencoder, checkpoint)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    where, figure = next(
        ((place, files[path.name]) for place, files in PUBLISHED.items() if path.name in files),
        (None, ""),
    )
    facts = {
        "file": path.name,
        "sha256": digest,
        "adapter": type(denoiser).__name__,
        "network": type(denoiser.network).__name__,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "shape": list(denoiser.shape),
        "classes": denoiser.classes,
        "sigma_min": denoiser.sigma_min,
        "sigma_max": denoiser.sigma_max,
        "published as": f"{SERVER}/{where}/{path.name}" if where else "unknown, by its name",
        "FID in the paper": figure or "none stated",
        "licence": LICENCE if where else "unknown",
        "distilled": (
            "it seems so: saved without a loss, as SiD saves generators"
            if checkpoint.generator and not where
            else "no sign of it"
        ),
    }
    with appearing(out) as partial:
        folder.save(partial, denoiser)
        if autoencoder is not None:
            autoencoder.save_pretrained(partial / "vae")
        write_text(partial / "README.md", _card(facts))
    return facts


def _tell(path: Path, autoencoder: Any, checkpoint: Checkpoint) -> None:
    """Write into the autoencoder's configuration what its latents become."""
    latents, channels = checkpoint.latents, autoencoder.config.latent_channels
    if latents is None:
        raise InstilError(f"{path}: a model of images, which needs no autoencoder; leave out --vae")
    if channels != checkpoint.denoiser.shape[0]:
        raise InstilError(
            f"{path}: its latents have {checkpoint.denoiser.shape[0]} channels, those of --vae "
            f"{channels}; it was trained on those of stabilityai/sd-vae-ft-mse"
        )
    autoencoder.register_to_config(
        scaling_factor=1.0, latents_mean=latents.mean, latents_std=latents.std, shift_factor=None
    )


def _card(facts: Mapping[str, Any]) -> str:
    paper = "EDM's code (Karras et al. 2022, arXiv 2206.00364)"
    if facts["network"] == "EDM2UNet":
        paper = "EDM2's code (Karras et al. 2024, arXiv 2312.02696)"
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    text = f"""\
The weights of a checkpoint of {paper} as safetensors,
converted by instil {__version__} without running what the file holds. Whether it is the published
file was judged by its name alone. Students made from it inherit its licence.

| | |
| --- | --- |
{rows}

```python
from instructors.load import load

denoiser = load("{Path(facts["file"]).stem}").denoiser
```
"""
    title = f"{facts['file']}, converted"
    sign = (FEW_STEP_TAG,) if facts["distilled"] != "no sign of it" else ()
    tags = ("diffusion", "instil-instructor", *sign)
    return model_card(title, text, facts["licence"], tags)
