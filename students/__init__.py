"""Generators: noise in, sample out, differentiable in between."""

from instil.base.shadowed import refuse_shadowed

refuse_shadowed(__name__)
