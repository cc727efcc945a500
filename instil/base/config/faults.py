"""One sentence for each fault of a recipe, with the key and, if one is near, the name meant."""

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from instil.base.config import own
from instil.base.config.choice import fields_of, sections
from instil.base.errors import InstilError

# Names of other trainers, and ours.
THEIRS = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "train_batch_size": "batch",
    "max_train_steps": "steps",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "mixed_precision": "precision",
    "output_dir": "output",
    "max_grad_norm": "clip",
    "lr_warmup_steps": "warmup",
    "lr_scheduler": "schedule",
    "pretrained_model_name_or_path": "instructor",
    "report_to": "trackers",
    "checkpointing_steps": "save_every",
}


def explained(model: type[BaseModel], error: ValidationError) -> InstilError:
    """All faults of a recipe, one line each; its cause is what the user's own code has raised."""
    places = [fault["loc"] for fault in error.errors()]
    faults = [  # a list is too short only because its values are refused
        fault
        for fault in error.errors()
        if not any(
            len(each) > len(fault["loc"]) and each[: len(fault["loc"])] == fault["loc"]
            for each in places
        )
    ]
    causes = (fault.get("ctx", {}).get("error") for fault in faults)
    made = InstilError("\n".join(_explain(model, fault) for fault in faults))
    made.__cause__ = next((cause for cause in causes if isinstance(cause, Exception)), error)
    return made


def _explain(model: type[BaseModel], fault: Any) -> str:
    """One sentence for one pydantic fault."""
    known, kinds, path = _walk(model, fault["loc"])
    key = ".".join(map(str, path)) or model.__name__
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_hint(model, [str(part) for part in path], known)}"
    if fault["type"] == "missing":
        return f"{key}: missing; give {key}=…"
    if fault["type"] == "union_tag_not_found":
        return f"{key}: give its kind, one of {', '.join(kinds)}, or package.module:Class"
    if fault["type"] == "union_tag_invalid":
        tag = fault["ctx"]["tag"]
        near = difflib.get_close_matches(str(tag), kinds, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: unknown kind {tag!r}, expected {', '.join(kinds)}{hint}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault.get("ctx", {}).get("error"), InstilError):
        return f"{key}: {message}"
    value = fault["input"]
    got = "" if isinstance(value, dict) else f", got {_listed(value)!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{got}"


def _hint(model: type[BaseModel], path: list[str], known: list[str]) -> str:
    """What the writer of an unknown key may have meant."""
    *section, name = path
    if "." in name:
        first, rest = name.split(".", 1)
        return f"in a file, write `{first}: {{{rest}: …}}`"
    prefix = "".join(f"{part}." for part in section)
    leaf = THEIRS.get(name, name)
    same = [key for key, _ in fields_of(model) if key.rsplit(".", 1)[-1] == leaf]
    same.sort(key=lambda key: (not key.startswith(prefix), key.count(".")))
    near = [prefix + each for each in difflib.get_close_matches(name, known, n=1)]
    meant = [*same, *near]
    return f"did you mean {meant[0]}?" if meant else f"known keys: {', '.join(known)}"


def _listed(value: Any) -> Any:
    """Tuples as the lists that were written."""
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _walk(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[list[str], list[str], list[int | str]]:
    """The keys and the kinds known where `location` points, and `location` without kinds."""
    fields: dict[str, FieldInfo] = model.model_fields
    kinds: dict[str, type[BaseModel]] = {}
    known, path = list(fields), []
    for part in location:
        if part in kinds or (kinds and own.is_name(str(part))):
            fields, kinds = (kinds.get(str(part)) or own.load(str(part))).model_fields, {}
            known = list(fields)
            continue
        path.append(part)
        known = list(fields)
        kinds = sections(fields[part].rebuild_annotation()) if part in fields else {}
        fields = kinds[""].model_fields if "" in kinds else {}
    return known, list(kinds), path
