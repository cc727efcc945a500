"""Generators that somebody already has: their files, networks, training and checks."""
