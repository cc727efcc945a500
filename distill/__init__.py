"""The method: a student follows the gap between its own score and the instructor's."""

from instil.base.shadowed import refuse_shadowed

refuse_shadowed(__name__)
