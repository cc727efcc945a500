"""Models or images in, numbers and pictures out."""

from instil.base.shadowed import refuse_shadowed

refuse_shadowed(__name__)
