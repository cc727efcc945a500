"""What is seen of a run: measurements, pictures, curves and report."""
