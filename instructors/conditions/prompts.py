"""Prompts become tensors once: encoded by the pipeline's own encoders, kept as safetensors."""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from instil.base.checkpoint import read_tensors, write_tensors
from instil.base.errors import InstilError
from instil.base.files import cache_folder
from instil.base.runs.monitor import cache_may_fail
from instil.base.untrusted import is_dir, read_json
from instructors.denoiser import Condition
from instructors.families import ENCODERS
from instructors.files.pipelines import INDEX, NETWORKS, parts_of, read_pipeline
from instructors.files.sources import locate
from instructors.files.weights import weights_hash
from instructors.instructor import Card

BATCH = 16
Tensors = dict[str, Tensor]


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
    index = card.folder / INDEX
    content = read_json(index) if index.exists() else {}
    name = content.get("_class_name")
    if name not in ENCODERS:
        raise InstilError(
            f"{card.source}: prompts are encoded by a whole pipeline, got {name}; "
            f"supported: {', '.join(ENCODERS)}"
        )
    encoders = [part for part in parts_of(content) if part.startswith("text_encoder")]
    folder = card.folder
    if not is_dir(card.source):
        place = locate(card.source)
        place.fetch(encoders, ["tokenizer*/*"])
        folder = place.folder
    try:
        path = cache_folder() / f"prompts-{_key(folder, name, prompts, negative)}.safetensors"
        if path.exists():
            tensors = read_tensors(path)
        else:
            tensors = _encode(folder, name, prompts, negative, device)
            with cache_may_fail():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{os.getpid()}-{path.name}")
                write_tensors(partial, tensors)
                partial.replace(path)
    except InstilError as error:
        raise InstilError(f"{card.source}: text encoders cannot be loaded: {error}") from None
    null = {key.removeprefix("null_"): value for key, value in tensors.items() if "null_" in key}
    table = {key: value for key, value in tensors.items() if "null_" not in key}
    return Condition(**table), Condition(**null) if null else None


@torch.no_grad()
def _encode(
    folder: Path,
    name: str,
    prompts: Sequence[str],
    negative: str,
    device: torch.device | str,
) -> Tensors:
    if find_spec("transformers") is None:
        raise InstilError("they need the package transformers; pip install 'instil[text]'")
    index = read_json(folder / INDEX)
    absent = {part: None for part in ("vae", *NETWORKS) if part in index}
    pipeline = read_pipeline(folder, absent)
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
