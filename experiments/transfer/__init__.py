"""Experiments on transfer."""
