"""Files of prompts: text, or a column of a table."""

import csv
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instil.base.errors import InstilError
from instil.base.untrusted import LARGEST, is_file, read_text

COLUMNS = ("prompt", "text", "caption")  # the first of them that a table has
TABLES = (".csv", ".json", ".jsonl", ".parquet")
NOT_READ = (".arrow", ".tsv", ".xml", ".yaml", ".yml")


def read_prompts(source: str) -> tuple[str, ...]:
    """The prompts of a file that are not blank, in order.

    Args:
        source: A text file with a prompt per line, or a `.csv`, `.json`, `.jsonl` or `.parquet`
            file. `FILE::COLUMN` names the column of a table; without it, the first of `COLUMNS`
            that the first row has. The prompts of a JSON file may also be a list of strings.

    Raises:
        InstilError: The file cannot be read, is of another kind, or holds no prompts.
    """
    path, _, column = (source, "", "") if is_file(source) else source.partition("::")
    kind = Path(path).suffix.lower()
    if kind in NOT_READ or (column and kind not in TABLES):
        raise InstilError(
            f"{source}: expected a text file with a prompt per line, or a column of a "
            f"{', '.join(TABLES)} file, got {kind or 'a name without a suffix'}"
        )
    try:
        rows = _rows(Path(path), kind)
    except (ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, InstilError):
            raise
        raise InstilError(f"{path}: not a {kind} file ({str(error)[:200]})") from None
    except OSError as error:  # of pyarrow
        raise InstilError(f"{path}: cannot be read ({str(error)[:200]})") from None
    prompts = [_text(row, column, path, number) for number, row in enumerate(rows, 1)]
    if not any(prompts):
        raise InstilError(f"{path}: is empty; expected a prompt per line")
    return tuple(filter(None, prompts))


def _rows(path: Path, kind: str) -> list[Any]:
    """A string or a mapping for each prompt."""
    if kind == ".parquet":
        if find_spec("pyarrow") is None:
            raise InstilError(f"{path}: needs the package pyarrow; pip install pyarrow")
        from pyarrow import parquet  # pyrefly: ignore[missing-import]

        return parquet.read_table(path).to_pylist()
    text = read_text(path, LARGEST).removeprefix("\ufeff")  # a byte order mark
    if kind == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if kind == ".json":
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise InstilError(f"{path}: expected a JSON list of prompts or of objects")
        return rows
    lines = [line.strip() for line in text.splitlines()]
    if kind != ".jsonl":
        return lines
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _text(row: Any, column: str, path: str, number: int) -> str:
    """The prompt of a row; empty for a blank one."""
    value = row
    if isinstance(row, dict):
        name = column or next((name for name in COLUMNS if name in row), "")
        if name not in row:
            raise InstilError(
                f"{path}: row {number} has no column {column or ' or '.join(COLUMNS)}, only "
                f"{', '.join(map(str, row))}; name one as {path}::COLUMN"
            )
        value = row[name]
    if not isinstance(value, str | None):
        raise InstilError(f"{path}: row {number}: expected text, got {str(value)[:80]}")
    return (value or "").strip()
