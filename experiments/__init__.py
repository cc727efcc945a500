"""Claims of the papers, each an experiment with numbers."""
