"""What a frozen autoencoder of any kind costs on other data.

With encoder e, decoder g, residual r(x) = x - g(e(x)) and p^ the law of g(e(x)):

    (1)  price(sigma) = KL(p_sigma || p^_sigma) <= E|r|^2 / (2 sigma^2)

for every autoencoder and every law, since KL is convex. The bound needs reconstructions alone. It
is tight as sigma falls to 0 unless the residual looks like noise; it need not rank two autoencoders
as their prices do. The price itself is the gap of a denoiser fitted to reconstructions and one
fitted to the data, on held-out data (see `eval.curves`). Locally, a decoder is the linear latent
space that its Jacobian spans, with angles to the data of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.curves import Estimate
from eval.latents.angles import Levels, principal_angles
from instil.base.data import floats
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.runs.monitor import track
from instructors import codec
from instructors.files.models import read_autoencoder


@dataclass(frozen=True)
class Autoencoder:
    """Any pair of an encoder and a decoder.

    Attributes:
        encode: Images (B, *shape) float32 in [-1, 1] to latents (B, *latent).
        decode: Latents to images.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


KINDS = ("AutoencoderKL", "AutoencoderTiny")


def load_codec(
    source: str, kinds: Sequence[str], shape: tuple[int, ...], device: torch.device
) -> codec.Autoencoder:
    """An autoencoder that diffusers saved, frozen.

    Args:
        source: The folder of the model, or of a pipeline with a `vae` in it.
        kinds: Names of the classes it may be of.
        shape: Shape of the images.
        device: Device to put it on.

    Raises:
        InstilError: There is none, it is not of a supported class, or it does not give images of
            that shape back.
    """
    network = read_autoencoder(source, kinds)
    found = codec.Autoencoder(network).requires_grad_(False).eval().to(device)
    channels = network.config.in_channels
    if channels != shape[0]:
        raise InstilError(
            f"{source}: takes images of {channels} channels, these have {shape[0]}; convert them"
        )
    with torch.no_grad():
        latents = found.encode(torch.zeros(1, *shape, device=device))
        back = tuple(found.decode(latents).shape[1:])
    if back != shape:
        raise InstilError(
            f"{source}: gives images of the shape {back} back for {shape}; crop or resize them"
        )
    return found


def load_autoencoder(source: str, shape: tuple[int, ...], device: torch.device) -> Autoencoder:
    """As `load_codec`; a latent is the mean of its law."""
    found = load_codec(source, KINDS, shape, device)
    return Autoencoder(found.encode, found.decode)


@torch.no_grad()
def reconstruct(
    autoencoder: Autoencoder,
    samples: Tensor,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> Tensor:
    """g(e(x)) of every sample.

    Args:
        autoencoder: On `device`.
        samples: (N, *shape); uint8 images become [-1, 1].
        batch: Samples at once.
        device: Device of the autoencoder.
        label: Name of a progress bar on a terminal.

    Returns:
        (N, *shape) float32, on the CPU.

    Raises:
        InstilError: The output is not finite.
    """
    parts = []
    for part in track(samples.split(batch), label):
        clean = floats(part).float().to(device)
        parts.append(autoencoder.decode(autoencoder.encode(clean)).float().cpu())
    found = torch.cat(parts)
    if not found.isfinite().all():
        raise InstilError("autoencoder: its output is not finite; look at its weights")
    return found


def residuals(samples: Tensor, reconstructed: Tensor) -> Tensor:
    """(N,) float64 squared length |x - g(e(x))|^2 of every sample, summed over its axes."""
    parts = zip(samples.split(1024), reconstructed.split(1024), strict=True)
    return torch.cat([(floats(x) - y).double().flatten(1).square().sum(1) for x, y in parts])


def reconstruction_kl_bound(residual: Tensor, sigma: Levels) -> Tensor:
    """The bound (1) of the module docstring.

    Args:
        residual: (N,) squared residuals.
        sigma: K noise levels, data units.

    Returns:
        (N, K) nats; the mean over samples is the bound.
    """
    levels = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)
    return residual.double()[:, None] / (2 * levels**2)


def reuse_sigma(residual: Tensor, nats: float) -> float:
    """The noise level above which an autoencoder costs at most `nats`, by (1).

    It is in the units of the data the residual was taken in, so it says nothing about the noise
    levels of a model that works on the autoencoder's scaled latents.

    Args:
        residual: (N,) squared residuals.
        nats: Tolerance per sample; for one per dimension, times the dimensions of a sample.
    """
    if not nats > 0:
        raise InstilError(f"tolerance {nats:g} nats: expected more than 0")
    return math.sqrt(residual.double().mean().item() / (2 * nats))


@dataclass(frozen=True)
class LocalAngles:
    """How a decoder's tangent space lies to the data, around some of the samples.

    Attributes:
        outside: Share of the squared distance to near samples that lies outside the tangent space;
            where both are linear, the mean squared sine of the principal angles.
        radians: (min(k, m),) principal angles between the tangent space and the span of the k
            differences, rising; means over the samples.
    """

    outside: Estimate
    radians: Tensor


def local_angles(
    autoencoder: Autoencoder,
    samples: Tensor,
    *,
    around: int = 50,
    neighbours: int = 4,
    directions: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LocalAngles:
    """Local principal angles of a decoder, by forward differentiation (jvp).

    At z = e(x) the tangent space is spanned by the decoder's Jacobian J. Above `directions` latents
    it is the span of J at that many random directions, so that the share outside is a bound.

    Args:
        autoencoder: On `device`, its decoder differentiable by forward mode.
        samples: (N, *shape) of the target.
        around: Samples whose surroundings are looked at: the first ones.
        neighbours: k, nearest other samples of each.
        directions: Most columns of J taken.
        seed: Of the random directions.
        device: Where the autoencoder lies.

    Raises:
        InstilError: There are not more than k samples.
    """
    if len(samples) <= neighbours:
        raise InstilError(
            f"samples: {len(samples)} have no {neighbours} neighbours each; take more samples"
        )
    data = floats(samples).float()
    flat = data.flatten(1)
    near = torch.cdist(flat[:around], flat).topk(neighbours + 1, largest=False).indices[:, 1:]
    missed, lengths, angles = [], [], []
    for number in range(min(around, len(data))):
        with torch.no_grad():
            latent = autoencoder.encode(data[number : number + 1].to(device))
        size = latent.numel()
        if size <= directions:
            ways = torch.eye(size, device=device)
        else:
            ways = Draws.of_range(seed, number, 0, directions, device).normal("ways", (size,))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
            columns = [
                torch.func.jvp(autoencoder.decode, (latent,), (way.view_as(latent),))[1].flatten()
                for way in ways
            ]
        tangent = _span(torch.stack(columns, 1).double().cpu())
        apart = (flat[near[number]] - flat[number]).double().mT
        length = apart.square().sum()
        lengths.append(length)
        missed.append(length - (tangent.mT @ apart).square().sum())
        flat_there = not tangent.shape[1]  # a decoder that is constant around here
        angles.append(torch.empty(0) if flat_there else principal_angles(_span(apart), tangent))
    total, lost = torch.stack(lengths), torch.stack(missed)
    share = (lost.sum() / total.sum()).item()
    # the error of a ratio of sums, to first order
    spread = Estimate.of((lost - share * total) / total.mean()).stderr
    rank = min(map(len, angles))
    return LocalAngles(Estimate(share, spread), torch.stack([a[:rank] for a in angles]).mean(0))


def _span(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span of columns (d, m), as many as are independent."""
    left, scales, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, scales > 1e-5 * scales[0]]
