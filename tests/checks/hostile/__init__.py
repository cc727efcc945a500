"""Hostile input: mutated and crafted files of every kind that a command reads."""
