"""How far may a frozen latent space be reused on other data (arXiv 2605.13448)?"""
