"""Command-line options of a typed question, and back."""

import argparse
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from eval.questions import Question
from instil.base.config import read_overrides, validate
from instil.base.errors import InstilError

Q = TypeVar("Q", bound=Question)


def options(parser: argparse.ArgumentParser, question: type[Question]) -> None:
    """Declare the fields of a question as options; `overrides` are what stands without a name."""
    for name, field in question.model_fields.items():
        if name in Question.model_fields:
            continue
        text = " ".join((field.description or "").split()).rstrip(".")
        if name == "overrides":
            parser.add_argument(name, nargs="*", metavar="key=value", help=text)
            continue
        option, kind = f"--{name.replace('_', '-')}", _kind(field.annotation)
        if kind is bool:
            parser.add_argument(option, action="store_true", help=text)
        elif field.is_required():
            parser.add_argument(option, type=kind, required=True, help=text)
        else:
            default = ",".join(field.default) if kind is _list and field.default else field.default
            shown = text if default is None else f"{text} [{default}]"
            parser.add_argument(option, type=kind, default=default, help=shown)


def question_of(kind: type[Q], arguments: argparse.Namespace) -> Q:
    """The question that parsed arguments ask.

    Raises:
        InstilError: One line per value that is out of its range, each with its option.
    """
    given = {name: getattr(arguments, name) for name in kind.model_fields}
    try:
        return validate(kind, given)
    except InstilError as error:
        lines = [_option(line, kind) for line in str(error).split("\n")]
        raise InstilError("\n".join(lines)) from None


def _option(line: str, kind: type[Question]) -> str:
    """A fault of a field as one of its option."""
    key = re.split(r"\W", line, maxsplit=1)[0]
    if key == kind.__name__:
        return line.removeprefix(f"{key}: ")
    return f"--{key.replace('_', '-')}{line[len(key) :]}" if key in kind.model_fields else line


def _kind(annotation: Any) -> Any:
    """The type that reads an option: int, float, bool, Path, a list, or str for the rest."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is tuple:
        return _list
    return annotation if annotation in (int, float, bool, Path) else str


def _list(text: str) -> list[Any]:
    return read_overrides([f"list=[{text}]"])["list"]
