"""The ground floor: recipes, randomness, noise levels, checkpoints, data, runs."""

__version__ = "0.1.0"
