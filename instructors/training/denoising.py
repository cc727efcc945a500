"""The one denoising loss, on which instructors and fake scores are trained."""

from torch import Tensor


def denoising_loss(denoised: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error per sample.

    Args:
        denoised: (B, *shape), D(clean + sigma * noise, sigma).
        clean: (B, *shape).
        weight: (B,), such as `Denoiser.weight(sigma)`.

    Returns:
        (B,), summed over the axes of a sample.

    Source:
        Karras et al. 2022, arXiv 2206.00364, eq. 2.
    """
    return weight * (denoised - clean).square().flatten(1).sum(1)
