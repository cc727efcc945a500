"""How far must the diffusion run, given the training data (arXiv 2506.00849)?"""
