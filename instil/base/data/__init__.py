"""Images: in memory, by the name of a set, from files."""

from instil.base.data.images import Images, floats, to_float, to_uint8
from instil.base.data.sets import digits_split, load

__all__ = ["Images", "digits_split", "floats", "load", "to_float", "to_uint8"]
