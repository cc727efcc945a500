"""Types of values that several recipes have."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, Field

Seed = Annotated[int, Field(ge=0, lt=2**64)]


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[^\W_][\w.-]*", name):
        raise ValueError("expected letters, digits, '.', '-' and '_', a letter or digit first")
    return name


def _expanded(path: str) -> str:
    path = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111, it may be a hub id
    if unset := re.search(r"\$(\w+|\{\w+\})", path):
        raise ValueError(f"there is no environment variable {unset[0]}")
    return path


RunName = Annotated[str, AfterValidator(_run_name)]
# A file, a folder, or a name that stands for one: `~` and `$HOME` are expanded.
Location = Annotated[str, AfterValidator(_expanded)]
