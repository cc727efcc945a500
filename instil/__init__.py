"""Data-free distillation of diffusion models into one- and few-step generators.

    import instil

    run = instil.distil("google/ddpm-cifar10-32", steps=500, divergence="dmd")
    run.finish()
    images = run.student.sample(seeds=range(16))

A name is imported when it is first used, so `import instil` costs no torch.
"""

import ast
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from instil.base import __version__
from instil.base.shadowed import refuse_shadowed

if TYPE_CHECKING:
    from distill.divergences import DMD as DMD
    from distill.divergences import IKL as IKL
    from distill.divergences import SIM as SIM
    from distill.divergences import Divergence as Divergence
    from distill.divergences import SiD as SiD
    from distill.recipe import Recipe as Recipe
    from eval.quality.features import Extractor as Extractor
    from instil.api import distil as distil
    from instil.api import load_student as load_student
    from instil.base.data import Images as Images
    from instil.base.data import load as load_images
    from instil.base.draws import Draws as Draws
    from instil.base.errors import InstilError as InstilError
    from instil.base.levels import FlowUniform as FlowUniform
    from instil.base.levels import KarrasUniform as KarrasUniform
    from instil.base.levels import LevelDistribution as LevelDistribution
    from instil.base.levels import LogitNormal as LogitNormal
    from instil.base.levels import LogNormal as LogNormal
    from instil.base.levels import LogUniform as LogUniform
    from instil.measuring import fid as fid
    from instructors.denoiser import Condition as Condition
    from instructors.denoiser import Denoiser as Denoiser
    from instructors.instructor import Instructor as Instructor
    from instructors.load import load as load_instructor
    from students.few_step import FewStep as FewStep
    from students.one_step import OneStep as OneStep
    from students.student import Student as Student


def _places() -> dict[str, str]:
    """The names imported above, for editors, and the objects that they stand for."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {str(a.asname): f"{node.module}:{a.name}" for node in imports for a in node.names}


_PLACES = _places()
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import a name of the face when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'instil' has no attribute {name!r}")
    refuse_shadowed("distill")
    globals()[name] = value = resolve_name(_PLACES[name])
    return value


def __dir__() -> list[str]:
    return __all__
