"""A pretrained diffusion model, seen as a denoiser D(x, sigma)."""

from instil.base.shadowed import refuse_shadowed

refuse_shadowed(__name__)
