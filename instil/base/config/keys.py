"""What a recipe may say, and what one says: `--keys` and `--show`, made from the classes."""

import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from instil.base.config.choice import OneOf, kind_of, sections
from instil.base.config.model import Choice, merge
from instil.base.config.recipes import Layer
from instil.base.errors import InstilError

OWN = "package.module:Class"
TYPES = {str: "text", int: "integer", float: "number", bool: "true | false", type(None): "null"}
ATTRIBUTES, ATTRIBUTE = r"Attributes:\n((?: {4}.*\n?|\n)+)", r"^ {4}(\w+): (.*(?:\n {8}.*)*)"
BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}


def keys(model: type[BaseModel], prefix: str = "") -> str:
    """Every key of a recipe with type, default and text, as Markdown.

    Args:
        model: The recipe's class.
        prefix: A key; it and those below it are listed. All are for an empty one.

    Raises:
        InstilError: No key is below `prefix`.
    """
    lines = [line for key, line in _lines(model) if f"{key}.".startswith(f"{prefix}.".lstrip("."))]
    if not lines:
        raise InstilError(f"--keys {prefix}: there is no such key; leave it out to see all")
    return "\n".join(lines)


def _lines(
    model: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None
) -> Iterator[tuple[str, str]]:
    """Each key and its line; a section's `defaults` are those of the recipe around it."""
    texts = _texts(model)
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        key, annotation = prefix + name, field.rebuild_annotation()
        default = field.default if defaults is None else getattr(defaults, name)
        said = "; required" if field.is_required() and defaults is None else _default(default)
        yield key, f"* `{key}` ({_type(annotation)}{said}): {texts.get(name, '')}"
        for kind, section in sections(annotation).items():
            if kind:
                summary = inspect.cleandoc(section.__doc__ or "").partition("\n\n")[0]
                yield key, f"  * `{key}.kind={kind}`: {_flat(summary)}"
            inner = default if isinstance(default, section) else None
            for each, line in _lines(section, f"{key}.", inner):
                yield each, f"    {line}" if kind else line


def _default(value: Any) -> str:
    """A default as a recipe would have it; a section's are those of its keys."""
    if isinstance(value, Choice):
        return f"; default {kind_of(type(value))}"
    if isinstance(value, BaseModel):
        return ""
    return f"; default {_scalar(list(value) if isinstance(value, tuple) else value)}"


def _texts(model: type[BaseModel]) -> dict[str, str]:
    """The texts of a class's fields, from the Attributes of its docstring and its bases'."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        section = re.search(ATTRIBUTES, inspect.cleandoc(base.__doc__ or ""))
        for match in re.finditer(ATTRIBUTE, section[1] if section else "", re.MULTILINE):
            texts[match[1]] = _flat(match[2])
    return texts


def _flat(text: str) -> str:
    return " ".join(text.split())


def _type(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """A type in a reader's words, such as `integer > 0` or `list of number`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = [each for each in parts[1:] if isinstance(each, OneOf)]
        return " | ".join([*found[0].kinds, OWN]) if found else _type(parts[0], parts[1:])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " | ".join(_type(part) for part in parts)
    if origin is tuple:
        listed = [_type(part) for part in parts if part is not Ellipsis]
        return f"list of {listed[0]}" if Ellipsis in parts else f"[{', '.join(listed)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    flat = [each for bound in bounds for each in getattr(bound, "metadata", [bound])]
    limits = [
        text.format(getattr(each, name))
        for each in flat
        for name, text in BOUNDS.items()
        if hasattr(each, name)
    ]
    return " ".join([TYPES.get(annotation, "mapping"), " and ".join(limits)]).rstrip()


def show(recipe: BaseModel, given: Sequence[Layer]) -> str:
    """The resolved recipe as YAML, with the source of each value behind it.

    Args:
        recipe: Made of `given`.
        given: Its layers, the oldest first.
    """
    lines = list(_yaml(recipe.model_dump(mode="json"), _origins(given)))
    width = min(60, max(len(line) for line, _ in lines))
    return "\n".join(f"{line:<{width}}  # {source}" if source else line for line, source in lines)


def _origins(given: Iterable[Layer]) -> dict[str, str]:
    """The layer that each key of a recipe is from; keys that have their defaults are left out."""
    content: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, values in given:
        content, new = merge(content, values), set(_leaves(values))
        origins = {k: source if k in new else _origin(k, origins) for k in _leaves(content)}
    return origins


def _origin(key: str, origins: Mapping[str, str]) -> str:
    section, _, name = key.rpartition(".")
    whole = origins.get(section) if name == "kind" else None  # `levels: log_normal`
    return origins.get(key) or whole or "default"


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _yaml(
    content: Mapping[str, Any], origins: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Lines of YAML, each with where its value is from."""
    for name, value in content.items():
        key, start = prefix + name, "  " * prefix.count(".") + name
        if isinstance(value, Mapping) and value:
            yield f"{start}:", ""
            yield from _yaml(value, origins, f"{key}.")
        else:
            yield f"{start}: {_scalar(value)}", _origin(key, origins)


def _scalar(value: Any) -> str:
    """A value or a list of them on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
