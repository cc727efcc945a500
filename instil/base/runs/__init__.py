"""A run: its accelerator, folder, progress, pictures and report."""
