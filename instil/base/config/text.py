"""YAML as people mean it, from files and from `key.path=value`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from instil.base import untrusted
from instil.base.config.model import merge
from instil.base.errors import InstilError

# Limits of a recipe, in characters and in values: PyYAML reads some fifty thousand a second.
LONGEST, MOST_VALUES = 100_000, 20_000


class _Loader(yaml.SafeLoader):
    """YAML as people mean it.

    No key twice, merge keys (`<<`), 1e-5 is a number; yes, no, on and off are words, and so are
    010 and 1:30, which YAML 1.1 reads as 8 and 90.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise InstilError(
                    f"{key.value}: given twice, the second time in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return node


NUMBERS = {
    "int": r"^[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$",
    "float": r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$",
}
_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rsplit(":", 1)[-1] not in NUMBERS
        and (letter not in "yYnNoO" or not tag.endswith(":bool"))  # true and false stay
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind, pattern in NUMBERS.items():
    tag = f"tag:yaml.org,2002:{kind}"
    _Loader.add_implicit_resolver(tag, re.compile(pattern), list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        InstilError: The file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    content = _parse(untrusted.read_text(path, LONGEST), str(path))
    if content is None:
        raise InstilError(f"{path}: is empty; expected keys, such as `instructor: digits`")
    if not isinstance(content, dict):
        raise InstilError(f"{path}: expected a mapping of keys, got a {type(content).__name__}")
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
