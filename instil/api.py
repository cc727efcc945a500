"""`instil.load_student`: a generator by name."""

from pathlib import Path
from typing import Any

import students.load
from instil.base.config import validate
from students.source import Source
from students.student import Student


def load_student(weights: str | Path, **settings: Any) -> Student:
    """Load a generator, in eval mode.

    Args:
        weights: A run's `student/` folder, an embedded name, or a file of weights.
        settings: The other fields of `students.source.Source`, such as `factory`.

    Raises:
        InstilError: Nothing there, or the weights are not those of the generator.
    """
    return students.load.load(validate(Source, {"weights": str(weights)} | settings))
