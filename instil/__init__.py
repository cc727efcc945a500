"""Data-free distillation of diffusion models into one- and few-step generators."""

from instil.base import __version__

__all__ = ["__version__"]
