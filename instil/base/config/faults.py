"""One sentence for each fault of a recipe, with the key and, if one is near, the name meant."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from instil.base.config import own
from instil.base.config.choice import sections
from instil.base.errors import InstilError


def explained(model: type[BaseModel], error: ValidationError) -> InstilError:
    """All faults of a recipe, one line each; its cause is what the user's own code has raised."""
    faults = error.errors()
    causes = (fault.get("ctx", {}).get("error") for fault in faults)
    made = InstilError("\n".join(_explain(model, fault) for fault in faults))
    made.__cause__ = next((cause for cause in causes if isinstance(cause, Exception)), error)
    return made


def _explain(model: type[BaseModel], fault: Any) -> str:
    """One sentence for one pydantic fault."""
    known, path = _walk(model, fault["loc"])
    key = ".".join(map(str, path)) or model.__name__
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        prefix = "".join(f"{part}." for part in path[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{key}: missing; give {key}=…"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        expected = fault["ctx"].get("expected_tags", "a mapping with a kind")
        tag = fault["ctx"].get("tag")
        near = difflib.get_close_matches(str(tag), re.findall(r"'(\w+)'", expected), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: unknown kind {tag!r}, expected {expected}{hint}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault.get("ctx", {}).get("error"), InstilError):
        return f"{key}: {message}"
    value = fault["input"]
    got = "" if isinstance(value, dict) else f", got {_listed(value)!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{got}"


def _listed(value: Any) -> Any:
    """Tuples as the lists that were written."""
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _walk(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[list[str], list[int | str]]:
    """The keys known where `location` points, and `location` without the kinds in it."""
    fields: dict[str, FieldInfo] = model.model_fields
    kinds: dict[str, type[BaseModel]] = {}
    known, path = list(fields), []
    for part in location:
        if part in kinds or (kinds and own.NAME.fullmatch(str(part))):
            fields, kinds = (kinds.get(str(part)) or own.load(str(part))).model_fields, {}
            known = list(fields)
            continue
        path.append(part)
        known = list(fields)
        kinds = sections(fields[part].rebuild_annotation()) if part in fields else {}
        fields = kinds[""].model_fields if "" in kinds else {}
    return known, path
