"""Typed recipes: pydantic models, YAML files and `key.path=value`, every fault reported at once.

This module and every recipe load without torch, so that a recipe is checked before anything slow.
"""

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instil.base import untrusted
from instil.base.errors import InstilError

# Of a recipe, in characters and in values: PyYAML reads some fifty thousand a second.
LONGEST, MOST_VALUES = 100_000, 20_000
# Annotates a tuple that a list may fill: a union's members are read from Python values, where
# strictness tells the two apart.
FROM_LIST = Field(strict=False)


class Config(BaseModel):
    """Base of every recipe: immutable, no unknown keys, no silent conversion (1.5 to 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again.

        Args:
            changes: By field, plain values or sections such as this one.

        Raises:
            InstilError: A value does not fit.
        """
        for key, value in changes.items():
            if isinstance(value, Config):
                changes[key] = value.model_dump(mode="json")
        return validate(type(self), self.model_dump(mode="json") | changes)


C = TypeVar("C", bound=Config)


def by_kind(value: Any) -> Any:
    """Let `divergence: sid` stand for `divergence: {kind: sid}`; for each union."""
    return {"kind": value} if isinstance(value, str) else value


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: no key twice, 1e-5 is a number, and yes, no, on, off are words."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key in (self.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, Hashable):
                continue  # which is refused below
            if key in seen:
                raise InstilError(f"{key}: given twice (line {node.start_mark.line + 1} onwards)")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)
for letter in "yYnNoO":  # of the booleans, true and false stay
    _Loader.yaml_implicit_resolvers[letter] = [
        (tag, pattern)
        for tag, pattern in _Loader.yaml_implicit_resolvers[letter]
        if tag != "tag:yaml.org,2002:bool"
    ]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        InstilError: The file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    content = _parse(untrusted.read_text(path, LONGEST), str(path))
    if not isinstance(content, dict):
        raise InstilError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    return content


def _parse(text: str, source: str) -> Any:
    """YAML as plain values.

    Raises:
        InstilError: It is none, or holds what no recipe needs.
    """
    try:
        content = yaml.load(text, _Loader)  # noqa: S506, a SafeLoader
    except InstilError:
        raise
    except yaml.YAMLError as error:
        raise InstilError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None
    # What PyYAML raises on numbers and dates that are none, and on thousands of brackets.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InstilError(
            f"{source}: holds a number, a date or brackets that YAML cannot read ({error})"
        ) from None
    untrusted.check(content, source, MOST_VALUES)
    return content


def read_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Turn `["train.steps=20", "seed=1"]` into nested mappings; values are YAML.

    Raises:
        InstilError: An argument is not of the form `key.path=value`.
    """
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise InstilError(f"{argument}: expected key.path=value, such as train.steps=100")
        if len(text) > LONGEST:
            raise InstilError(f"{key}: longer than {LONGEST:,} characters")
        # A word such as `*.bias`, since a value alone has no anchor that an alias could name.
        value: Any = text if text.startswith("*") else _parse(text, argument)
        for part in reversed(key.split(".")):
            value = {part: value}
        untrusted.check(value, argument)
        tree = merge(tree, value)
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; another `kind` starts from its own defaults."""
    merged = dict(base)
    for key, value in over.items():
        old = by_kind(merged.get(key)) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other_kind = value.get("kind", old.get("kind")) != old.get("kind")
            value = dict(value) if other_kind else merge(old, value)
        merged[key] = value
    return merged


def validate(model: type[C], content: Mapping[str, Any]) -> C:
    """Build a typed recipe.

    Raises:
        InstilError: One line per fault, each with its dotted key and, where one is near, the name
            that was probably meant.
    """
    defaults = {  # so that `optimizer.lr=1` alone changes nothing else of this recipe's optimizer
        name: field.default.model_dump(mode="json")
        for name, field in model.model_fields.items()
        if isinstance(field.default, Config)
    }
    try:
        # Through JSON, where strictness still reads lists as tuples and strings as paths.
        return model.model_validate_json(json.dumps(merge(defaults, content)))
    except TypeError as error:
        raise InstilError(f"{model.__name__}: {error}") from None
    except ValidationError as error:
        raise InstilError("\n".join(_explain(model, fault) for fault in error.errors())) from None


def recipe_names(folder: Path) -> str:
    """The named recipes in a folder, as messages and help texts list them."""
    return ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))


def load_recipe(model: type[C], source: str | None, overrides: Iterable[str], folder: Path) -> C:
    """A recipe by name or path, with `key.path=value` on top.

    Args:
        model: Its type.
        source: A name of a file in `folder`, a path, or None for overrides alone.
        overrides: As on the command line.
        folder: Where named recipes lie.

    Raises:
        InstilError: No such recipe, or it has faults; all of them are listed.
    """
    content: Mapping[str, Any] = {}
    if source is not None:
        named = folder / f"{source}.yaml"
        path = named if untrusted.is_file(named) and not untrusted.is_file(source) else Path(source)
        if not untrusted.is_file(path):
            names = recipe_names(folder)
            near = difflib.get_close_matches(source, names.split(", "), n=1)
            hint = f"did you mean {near[0]}?" if near else f"named ones: {names}"
            raise InstilError(f"{source}: no such recipe; {hint}")
        content = read_yaml(path)
    return validate(model, merge(content, read_overrides(overrides)))


def _explain(model: type[Config], fault: Any) -> str:
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
    got = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{got}"


def _walk(
    model: type[Config], location: tuple[int | str, ...]
) -> tuple[list[str], list[int | str]]:
    """The field names known where `location` points, and `location` without union tags."""
    schema = model.model_json_schema()
    node, known, path = schema, list(schema.get("properties", {})), []
    for part in location:
        mapping = node.get("discriminator", {}).get("mapping", {})
        if part in mapping:  # a union's tag: pydantic's own step, not a key of the user's
            node = schema["$defs"][mapping[part].rsplit("/", 1)[-1]]
        else:
            path.append(part)
            known = list(node.get("properties", {}))
            node = node.get("properties", {}).get(part) or node.get("items", {})
        while "$ref" in node or "anyOf" in node:
            options = [node] if "$ref" in node else node["anyOf"]
            node = next((o for o in options if o.get("type") != "null"), {})
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return known, path
