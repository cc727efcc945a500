"""The operations of StyleGAN2: modulated convolution, resampling, the activation.

A layer with weights W multiplies its input channels by styles s and divides its output channels by
what that did to their scale, which equals convolving with modulated and demodulated weights, but
has no weights per sample:

    y_o = sum_ik s_i W_oik x_i / sqrt(sum_ik (s_i W_oik)**2 + 1e-8)                           (1)

Source:
    Karras et al. 2020, arXiv 1912.04958, eq. 1 and 3.
"""

import math

from torch import Tensor
from torch.nn import functional


def upfirdn2d(x: Tensor, taps: Tensor, up: int = 1, crop: int = 0) -> Tensor:
    """Put `up` - 1 zeros after each pixel, convolve every channel with `taps`, crop all four sides.

    Args:
        x: (B, C, H, W).
        taps: (k, k), a true convolution: not flipped.
        up: Factor on the sides.
        crop: Pixels cut off each side of the full convolution.

    Returns:
        (B, C, n, m), n = (H - 1) up + k - 2 crop, and m likewise.
    """
    channels, (height, width) = x.shape[1], taps.shape
    weight = taps.to(x.dtype).expand(channels, 1, height, width)
    return functional.conv_transpose2d(x, weight, stride=up, padding=crop, groups=channels)


def convolve(x: Tensor, weight: Tensor, taps: Tensor | None = None) -> Tensor:
    """Correlate with `weight` (O, I, k, k), k odd; with `taps` double the sides and convolve.

    The doubled image is low-pass filtered after the convolution, which commutes with it and has
    fewer pixels to do before.
    """
    if taps is None:
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
    x = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return upfirdn2d(x, 4 * taps, crop=(weight.shape[-1] + len(taps) - 3) // 2)


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool = True, taps: Tensor | None = None
) -> Tensor:
    """Equation (1), or only its numerator; with `taps` the sides double.

    Args:
        x: (B, I, H, W).
        weight: (O, I, k, k).
        styles: (B, I).
        demodulate: Divide by the denominator.
        taps: Low-pass filter of the doubled image.

    Returns:
        (B, O, H, W), or (B, O, 2 H, 2 W).
    """
    x = convolve(x * styles[:, :, None, None], weight, taps)
    if not demodulate:
        return x
    power = functional.linear(styles.square(), weight.square().sum((2, 3)))
    return x * (power + 1e-8).rsqrt()[:, :, None, None]


def activate(x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Leaky ReLU that keeps the variance; `gain` scales its output and the bound on it."""
    x = functional.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def normalise(x: Tensor) -> Tensor:
    """Scale each row to unit mean square."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
