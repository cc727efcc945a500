"""Labels and prompts: what an instructor is asked for."""
