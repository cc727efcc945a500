"""Experiments on latent spaces."""
