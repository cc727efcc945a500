"""The instructor a recipe means: loaded, blended, guided, and told what it is asked for."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch

from instil.base.errors import InstilError
from instructors.adapters.guidance import Blend, Guided
from instructors.conditions.conditioning import Blending, Conditioning
from instructors.conditions.prior import Prior, labels
from instructors.conditions.prompt_files import read_prompts
from instructors.conditions.prompts import encode
from instructors.denoiser import Condition, Denoiser, sharing_copy
from instructors.instructor import Instructor
from instructors.load import load


def prepare(
    source: str | Instructor,
    conditioning: Conditioning,
    blending: Blending | None = None,
    side: int | None = None,
    device: torch.device | str = "cpu",
    weights: bool = True,
) -> Instructor:
    """Load an instructor and apply what the recipe says of it.

    Args:
        source: A name, folder or hub id for `instructors.load.load`, or a loaded instructor.
        conditioning: What is asked for.
        blending: Further instructors.
        side: Height and width of its samples, for networks that take any.
        device: Where networks run.
        weights: If not, networks stay on the meta device, and one empty prompt stands for all.

    Returns:
        The instructor. Its hash covers everything its samples depend on.

    Raises:
        InstilError: The model cannot do what is asked.
    """
    if isinstance(source, Instructor) and side:
        raise InstilError(
            f"side: {source.card.source} is loaded already; leave side out, or load it with side"
        )
    instructor = source if isinstance(source, Instructor) else load(source, side, weights)
    denoiser, card = instructor.denoiser, instructor.card
    hashes = [card.sha256]
    if denoiser.text:
        prior = _prompted(instructor, conditioning, device, weights)
    else:
        denoiser = _with_null_label(denoiser, conditioning.null_label)
        prior = _labelled(denoiser, conditioning)
    if blending:
        others = [load(other, side, weights) for other in blending.others]
        hashes += [other.card.sha256 for other in others]
        for other in others:
            if not instructor.codec.same_space(other.codec):
                raise InstilError(
                    f"blend: samples of {other.card.source} are made into images by another codec "
                    f"than those of {card.source}; blend instructors of one space"
                )
        more = [_with_null_label(other.denoiser, conditioning.null_label) for other in others]
        denoiser = Blend([denoiser, *more], blending.weights, blending.sigmas)
    if conditioning.guidance != 1 and "guidance" not in denoiser.text:
        try:
            denoiser = Guided(denoiser, conditioning.guidance)
        except ValueError as error:
            raise InstilError(f"conditioning.{error}") from None
    if weights:
        denoiser.to(device)
        instructor.codec.to(device)
    if conditioning != Conditioning() or blending or side:
        blend = blending.model_dump(mode="json") if blending else None
        facts = [hashes, conditioning.model_dump(mode="json"), blend, prior.prompts]
        facts += [side] if side else []
        sha = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        card = replace(card, sha256=sha)
    return replace(instructor, denoiser=denoiser, prior=prior.to(device), card=card)


def _labelled(denoiser: Denoiser, conditioning: Conditioning) -> Prior:
    """The prior over class labels."""
    for key in ("prompts", "negative"):
        if getattr(conditioning, key):
            raise InstilError(f"conditioning.{key}: this instructor is not conditioned on text")
    shares = conditioning.labels
    if shares is None:
        return labels(denoiser.classes)
    if not denoiser.classes:
        raise InstilError("conditioning.labels: this instructor is unconditional; leave it out")
    if len(shares) != denoiser.classes or sum(shares) == 0:
        raise InstilError(
            f"conditioning.labels: expected {denoiser.classes} shares, not all zero, "
            f"got {len(shares)}"
        )
    return labels(denoiser.classes, torch.tensor(shares))


def _with_null_label(denoiser: Denoiser, null: int | None) -> Denoiser:
    """The denoiser, weights shared, with its last class label as the null condition if named."""
    if null is None:
        return denoiser
    if null != denoiser.classes - 1:
        raise InstilError(
            f"conditioning.null_label: {null} is not the last of the instructor's "
            f"{denoiser.classes} labels"
        )
    denoiser = sharing_copy(denoiser)
    denoiser.classes = null
    denoiser.set_null(Condition(label=torch.tensor([null])))
    return denoiser


def _prompted(
    instructor: Instructor,
    conditioning: Conditioning,
    device: torch.device | str,
    weights: bool,
) -> Prior:
    """The prior over prompts."""
    denoiser: Any = instructor.denoiser
    if conditioning.prompts is None:
        raise InstilError(
            "conditioning.prompts: this instructor is conditioned on text; "
            "expected a file of prompts"
        )
    if conditioning.labels is not None or conditioning.null_label is not None:
        raise InstilError("conditioning: this instructor has prompts, no labels; leave them out")
    family = denoiser.family
    if conditioning.negative and not family.has_null_text:
        raise InstilError(
            "conditioning.negative: this instructor has no null condition; leave it out"
        )
    if weights:
        prompts = read_prompts(conditioning.prompts)
        table, null = encode(instructor.card, prompts, conditioning.negative, device)
    else:
        prompts = ("",)
        shapes = family.text(denoiser.network.config)
        table = Condition(**{name: torch.zeros(1, *shapes[name]) for name in shapes})
        null = table if family.has_null_text else None
    if "guidance" in denoiser.text:
        guidance = torch.full((len(prompts),), conditioning.guidance)
        table = Condition(**{**table, "guidance": guidance})
    if null is not None:
        denoiser.set_null(null)
    return Prior(table, prompts=prompts)
