"""A generalisation bound of variational autoencoders (arXiv 2506.00849)."""
