"""What a source is, in a table: `python -m instructors inspect SOURCE`."""

from typing import Any

from instructors.codec import Autoencoder, Codec, UnitRange
from instructors.instructor import Instructor


def describe(instructor: Instructor) -> dict[str, Any]:
    """The facts of an instructor; JSON as they are."""
    denoiser, codec, card = instructor.denoiser, instructor.codec, instructor.card
    return {
        "source": card.source,
        "network": type(denoiser.network).__name__ if denoiser.network else "none",
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "adapter": type(denoiser).__name__,
        "prediction": denoiser.prediction,
        "learned_variance": denoiser.learned_variance,
        "shape": list(denoiser.shape),
        "image_shape": list(codec.image_shape(denoiser.shape)),
        "sigma_min": denoiser.sigma_min,
        "sigma_max": denoiser.sigma_max,
        "sampled": list(denoiser.sampled or (denoiser.sigma_min, denoiser.sigma_max)),
        "classes": denoiser.classes,
        "conditions": [*(["label"] if denoiser.classes else []), *denoiser.text],
        "null_condition": _null(instructor),
        "codec": _codec(codec),
        "distilled": f"it seems so: {card.distilled}" if card.distilled else "no sign of it",
        "licence": card.licence,
    }


def _codec(codec: Codec) -> str:
    if isinstance(codec, Autoencoder):
        return type(codec.network).__name__
    return "images in [0, 1]" if isinstance(codec, UnitRange) else "none"


def _null(instructor: Instructor) -> str:
    denoiser: Any = instructor.denoiser
    if "guidance" in denoiser.text:
        return "none: guidance is built in"
    if denoiser.text:
        return "a negative prompt" if denoiser.family.has_null_text else "none"
    try:
        return f"label {denoiser.null(1)['label'].item()}"
    except ValueError:
        return "none"


def rows(facts: dict[str, Any]) -> list[dict[str, str]]:
    """The same as a table."""
    return [{"what": key.replace("_", " "), "value": _text(value)} for key, value in facts.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return (
            " x ".join(map(str, value))
            if value and isinstance(value[0], int)
            else f"sigma {value[0]:.4g} to {value[1]:.4g}"
            if value and isinstance(value[0], float)
            else (", ".join(value) or "none")
        )
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
