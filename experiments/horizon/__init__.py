"""Experiments on the diffusion horizon."""
