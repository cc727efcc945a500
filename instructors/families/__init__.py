"""One file per family of networks; a new family is one file and its name in `FAMILIES`."""

from typing import Any

from instructors.families.dit import DIT
from instructors.families.family import Encoder, Family
from instructors.families.flux import FLUX
from instructors.families.nvidia import EDM2_UNET, SONG_UNET
from instructors.families.pixart import PIXART
from instructors.families.sana import SANA
from instructors.families.stable_diffusion import STABLE_DIFFUSION
from instructors.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from instructors.families.unet import UNET, UNKNOWN

_ALL = (
    *(UNET, SONG_UNET, EDM2_UNET, DIT, STABLE_DIFFUSION),
    *(STABLE_DIFFUSION_3, PIXART, SANA, FLUX),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
# As diffusers' older releases name the class, by its `norm_type`.
LEGACY, OLD_NAMES = "Transformer2DModel", {"ada_norm_zero": DIT, "ada_norm_single": PIXART}
# By the class of the pipeline.
ENCODERS: dict[str, Encoder] = {
    pipeline: encoder for family in _ALL for pipeline, encoder in family.encoders.items()
}


def family_of(network: Any) -> Family:
    """The family of a network, by the name of its class; `UNKNOWN` for other code."""
    return FAMILIES.get(type(network).__name__, UNKNOWN)
