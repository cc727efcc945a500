"""What every part of the toolkit shares: recipes, randomness, noise levels, state, reports."""

__version__ = "0.1.0"
