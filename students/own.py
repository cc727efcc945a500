"""A student that is a copy of an instructor of the user's own code: a folder of weights alone.

The folder says which factory made the instructor, but whoever loads it names the factory again: a
folder is data, and no code runs because a folder asks for it.
"""

from pathlib import Path

from instil.base.checkpoint import read_tensors, write_tensors
from instil.base.errors import InstilError
from instructors.denoiser import Denoiser
from instructors.load import load
from students.pretrained import WEIGHTS, load_weights


def save_weights(folder: Path, denoiser: Denoiser) -> None:
    """Write what `load_denoiser` reads."""
    write_tensors(folder / WEIGHTS, denoiser.state_dict())


def load_denoiser(folder: Path, factory: str | None, named: str) -> Denoiser:
    """A denoiser that `save_weights` has written, in eval mode.

    Args:
        folder: The student's folder.
        factory: `package.module:callable` that makes the instructor; it is called.
        named: The factory that the folder names.

    Raises:
        InstilError: No factory is given, it fails, or the weights are not those of its network.
    """
    if factory is None:
        raise InstilError(
            f"{folder}: a copy of an instructor made by {named}; if you trust that code, give it "
            f"as factory={named}"
        )
    denoiser = load(factory).denoiser.base()
    load_weights(denoiser, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return denoiser
