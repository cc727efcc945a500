"""Checkpoints of NVIDIA: EDM, EDM2 and the pickles they come in."""
