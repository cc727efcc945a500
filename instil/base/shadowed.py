"""Files of the user's own that Python would import instead of one of our packages."""

from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("instructors", "students", "eval", "distill")  # each imports only those on its left


def refuse_shadowed(package: str) -> None:
    """Stop before a file such as `eval.py` in the working folder is taken for our `eval`.

    Args:
        package: The one of `PACKAGES` that is being imported; those it imports are looked at too.

    Raises:
        ImportError: A file or folder hides one of them; `python -m` prints it as one sentence.
    """
    for name in PACKAGES[: PACKAGES.index(package) + 1]:
        spec = find_spec(name)
        places = [spec.origin] if spec and spec.origin else []
        if spec and not places:  # a folder without __init__.py
            places = list(spec.submodule_search_locations or ())
        for place in map(Path, places):
            if HOME / name not in (place.resolve(), place.resolve().parent):
                raise ImportError(
                    f"{place} hides Instil's own package {name}; rename it, or use the command "
                    "`instil` in place of `python -m`",
                    name=package,
                )
