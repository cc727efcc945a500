"""A pretrained diffusion model, seen as a denoiser D(x, sigma)."""
