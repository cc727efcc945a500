"""Prompts become tensors once: encoded by the pipeline's own encoders, kept as safetensors."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.base.checkpoint import read_tensors, write_tensors
from instil.base.errors import InstilError
from instil.base.files import cache_folder
from instil.base.runs.monitor import cache_may_fail
from instil.base.untrusted import LARGEST, read_json, read_text
from instructors.denoiser import Condition
from instructors.families import ENCODERS
from instructors.instructor import Card
from instructors.sources import download, weights_hash

BATCH = 16
Tensors = dict[str, Tensor]


def read_prompts(path: str) -> tuple[str, ...]:
    """The lines of a text file that are not blank.

    Raises:
        InstilError: The file cannot be read or holds none.
    """
    text = read_text(Path(path), LARGEST)
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise InstilError(f"{path}: is empty; expected a prompt per line")
    return prompts


def encode(
    card: Card, prompts: Sequence[str], negative: str, device: torch.device | str = "cpu"
) -> tuple[Condition, Condition | None]:
    """Encode prompts, or read them from the cache; the encoders are dropped afterwards.

    Args:
        card: Of a text-conditioned pipeline.
        prompts: N of them.
        negative: The negative prompt; an empty one gives the pipeline's own null condition.
        device: Where the encoders run.

    Returns:
        Tensors with a leading axis N, and the null condition, with one of 1; None where the family
        has no null condition. On the CPU, float32.

    Raises:
        InstilError: The pipeline is not known, is incomplete, or `transformers` is missing.
    """
    folder = card.folder
    if not Path(card.source).is_dir():
        folder = download(card.source, ["*.json", "*.txt", "text_encoder*/*", "tokenizer*/*"])
    index = folder / "model_index.json"
    name = read_json(index).get("_class_name") if index.exists() else None
    if name not in ENCODERS:
        raise InstilError(
            f"{card.source}: prompts are encoded by a whole pipeline, got {name}; "
            f"supported: {', '.join(ENCODERS)}"
        )
    path = cache_folder() / f"prompts-{_key(folder, name, prompts, negative)}.safetensors"
    if path.exists():
        tensors = read_tensors(path)
    else:
        tensors = _encode(card.source, folder, name, prompts, negative, device)
        with cache_may_fail():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{os.getpid()}-{path.name}")
            write_tensors(partial, tensors)
            partial.replace(path)
    null = {key.removeprefix("null_"): value for key, value in tensors.items() if "null_" in key}
    table = {key: value for key, value in tensors.items() if "null_" not in key}
    return Condition(**table), Condition(**null) if null else None


@torch.no_grad()
def _encode(
    source: str,
    folder: Path,
    name: str,
    prompts: Sequence[str],
    negative: str,
    device: torch.device | str,
) -> Tensors:
    try:
        import diffusers
        import transformers  # noqa: F401, the encoders' library, an extra
    except ImportError:
        raise InstilError(
            "prompts: text encoders need the package transformers; pip install 'instil[text]'"
        ) from None
    parts = {"vae": None, "unet": None, "transformer": None, "safety_checker": None}
    index = read_json(folder / "model_index.json")
    absent = {key: value for key, value in parts.items() if key in index}
    try:
        pipeline: Any = getattr(diffusers, name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **absent
        )
    except Exception as error:  # a missing or broken file surfaces as a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(f"{source}: text encoders cannot be loaded ({reason})") from None
    pipeline.to(device)
    encoder = ENCODERS[name]
    batches = [list(prompts[first : first + BATCH]) for first in range(0, len(prompts), BATCH)]
    found = [encoder(pipeline, batch, None, device) for batch in batches]
    tensors = {key: torch.cat([part[key] for part in found]) for key in found[0]}
    tensors |= encoder(pipeline, [""], negative, device)
    return {key: value.float().cpu() for key, value in tensors.items()}


def _key(folder: Path, name: str, prompts: Sequence[str], negative: str) -> str:
    """Names an encoding: changes with prompts, encoders and tokenizers."""
    sha = hashlib.sha256(json.dumps([name, list(prompts), negative]).encode())
    for part in sorted(folder.glob("text_encoder*")):
        sha.update(weights_hash(part).encode())
    for file in sorted(folder.glob("tokenizer*/*")):
        sha.update(file.read_bytes())
    return sha.hexdigest()[:16]
