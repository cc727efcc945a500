"""Training an instructor on images."""

from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
