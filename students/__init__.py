"""Generators: noise in, sample out, differentiable in between."""
