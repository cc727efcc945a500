"""`python -m instructors convert`: a pickle of EDM's code becomes safetensors and JSON."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from instil import __version__
from instil.checkpoint import write_text
from instil.errors import InstilError
from instructors import folder
from instructors.edm import read_checkpoint

SERVER = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
# NVIDIA's: code and weights, https://github.com/NVlabs/edm#license; non-commercial, and what is
# made of them is shared alike.
LICENCE = "cc-by-nc-sa-4.0"
# File below SERVER: FID as stated in arXiv 2206.00364, table 2 (config F), and of its abstract;
# the other baselines are networks of earlier papers, with one figure per sampler.
PUBLISHED: dict[str, str] = {
    "edm-cifar10-32x32-cond-vp.pkl": "1.79 with 35 evaluations",
    "edm-cifar10-32x32-cond-ve.pkl": "1.79 with 35 evaluations",
    "edm-cifar10-32x32-uncond-vp.pkl": "1.97 with 35 evaluations",
    "edm-cifar10-32x32-uncond-ve.pkl": "1.98 with 35 evaluations",
    "edm-ffhq-64x64-uncond-vp.pkl": "2.39 with 79 evaluations",
    "edm-ffhq-64x64-uncond-ve.pkl": "2.53 with 79 evaluations",
    "edm-afhqv2-64x64-uncond-vp.pkl": "1.96 with 79 evaluations",
    "edm-afhqv2-64x64-uncond-ve.pkl": "2.16 with 79 evaluations",
    "edm-imagenet-64x64-cond-adm.pkl": "1.36 with 511 evaluations, stochastic",
    "baseline/baseline-cifar10-32x32-uncond-vp.pkl": "",
    "baseline/baseline-cifar10-32x32-uncond-ve.pkl": "",
    "baseline/baseline-imagenet-64x64-cond-adm.pkl": "1.55, stochastic",
}


def convert(path: Path, out: Path) -> dict[str, Any]:
    """Convert a checkpoint; nothing in it is executed.

    Args:
        path: Of the pickle.
        out: Folder for the result, which `instructors.load.load` opens; must not exist.

    Returns:
        What was found: network, parameters, shape, classes, noise levels, licence, digest.

    Raises:
        InstilError: `out` exists or cannot be written, or the file is refused.
    """
    if out.exists():
        raise InstilError(f"{out}: exists already; name a new folder with --out")
    denoiser: Any = read_checkpoint(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = next((name for name in PUBLISHED if name.rpartition("/")[2] == path.name), None)
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
        "published as": f"{SERVER}/{known}" if known else "unknown, by its name",
        "FID in the paper": (PUBLISHED[known] if known else "") or "none stated",
        "licence": LICENCE if known else "unknown",
    }
    try:
        with folder.appearing(out) as partial:
            folder.save(partial, denoiser)
            write_text(partial / "README.md", _card(facts))
    except OSError as error:
        raise InstilError(f"{out}: cannot be written ({error})") from None
    return facts


def _card(facts: Mapping[str, Any]) -> str:
    licence = facts["licence"]
    metadata = ModelCardData(
        license=licence if licence != "unknown" else None, tags=["diffusion", "instil-instructor"]
    )
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return str(
        ModelCard(
            f"""---
{metadata.to_yaml()}
---

# {facts["file"]}, converted

The weights of a checkpoint of EDM's code (Karras et al. 2022, arXiv 2206.00364) as safetensors,
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
        )
    )
