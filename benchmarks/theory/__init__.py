"""Experiments on the theory of the three diagnostics, numbered as in the project's notes."""
