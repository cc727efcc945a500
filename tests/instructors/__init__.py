"""Instructors: adapters, families, checkpoints of others, prompts, training."""
