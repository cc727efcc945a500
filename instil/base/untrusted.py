"""Read JSON and text that we did not write: limits on size, depth and types."""

import json
import os
from pathlib import Path
from typing import Any

from instil.base.errors import InstilError

MOST_VALUES, DEEPEST = 1_000_000, 60
LARGEST = 8 << 20  # bytes; our own files have thousands


def is_file(name: str | Path) -> bool:
    """Whether there is a file; False, not an error, for a name that no file can have."""
    return os.path.isfile(name)  # noqa: PTH113, Path's raises where a name is too long


def is_dir(name: str | Path) -> bool:
    """Whether there is a folder; False, not an error, for a name that no folder can have."""
    return os.path.isdir(name)  # noqa: PTH112, Path's raises where a name is too long


def exists(name: str | Path) -> bool:
    """Whether a path exists; False, not an error, for a name that no file can have."""
    return os.path.exists(name)  # noqa: PTH110, Path's raises where a name is too long


def check(content: Any, source: str, most: int = MOST_VALUES) -> None:
    """Refuse values that JSON does not have, and more or deeper ones than we ever need.

    Args:
        content: Values read from a file; may contain themselves, as YAML's aliases allow.
        source: Name of the file, for messages.
        most: Largest number of values.

    Raises:
        InstilError: A key is not a string, a value is of another type than JSON's, or there are too
            many or too deeply nested values.
    """
    left = most

    def walk(value: Any, key: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise InstilError(
                f"{source}: holds more than {most:,} values, or lists within lists more than "
                f"{DEEPEST} deep (at {key[:100]}); write it without aliases, and flatter"
            )
        if isinstance(value, dict):
            for name, inner in value.items():
                if not isinstance(name, str):
                    raise InstilError(f"{source}: {name!r} is no word; put quotes around this key")
                walk(inner, f"{key}.{name}" if key else name, depth + 1)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(inner, f"{key}.{number}" if key else str(number), depth + 1)
        elif not isinstance(value, bool | int | float | str | None):
            raise InstilError(
                f"{source}: {key}: a {type(value).__name__} ({value}) is no value of a recipe; put "
                "quotes around it if it is a word"
            )

    walk(content, "", 0)


def parse_json(text: str, source: str) -> dict[str, Any]:
    """Parse a JSON mapping.

    Raises:
        InstilError: The text is not a JSON mapping.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InstilError(f"{source}: not a JSON file ({str(error)[:200]})") from None
    if not isinstance(content, dict):
        raise InstilError(f"{source}: expected a JSON mapping, got a {type(content).__name__}")
    check(content, source)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises:
        InstilError: The file cannot be read, or does not hold a JSON mapping.
    """
    return parse_json(read_text(path, LARGEST), str(path))


def read_text(path: Path, largest: int) -> str:
    """Read a text file of at most `largest` bytes.

    Raises:
        InstilError: The file cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise InstilError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InstilError(f"{path}: cannot be read ({error}); expected text in UTF-8") from None
    if len(content) > largest:
        raise InstilError(f"{path}: larger than {largest:,} bytes, so it is none of ours")
    return text
