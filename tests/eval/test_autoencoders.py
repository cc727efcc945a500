"""Autoencoders against exact laws: the curve of theory, linear ones, diffusers' own classes."""

import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from scipy.integrate import dblquad
from scipy.stats import norm

from eval.curves import integrate_gap
from eval.latents.autoencoders import (
    Autoencoder,
    load_autoencoder,
    local_angles,
    reconstruct,
    reconstruction_kl_bound,
    residuals,
    reuse_sigma,
)
from experiments.latents.laws import autoencoder_price, latent_kl
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.analytic import fit_gaussian

CPU = torch.device("cpu")


def linear(basis):
    """Projection onto the span of a basis (d, m)."""
    return Autoencoder(lambda x: x @ basis, lambda z: z @ basis.mT)


def normal(count, features, seed=0):
    return Draws.of_range(seed, 0, 0, count).normal("x", (features,), torch.float64)


@pytest.mark.parametrize(
    ("s", "exact", "bound"),
    [(0.05, 3.0221, 3.30), (0.2, 0.6365, 0.825), (1.0, 0.06250, 0.165), (5.0, 0.00215, 0.033)],
)
def test_the_bound_holds_on_a_curve_that_loses_an_axis(s, exact, bound):
    """x = (u, 0.4 (u^2 - 1)) + N(0, 0.01), the first axis kept: golden values by quadrature."""
    noise, u = 0.01, np.linspace(-9, 9, 4001)
    weight = norm.pdf(u) * (u[1] - u[0])

    def density(a, b):
        return (
            weight
            * norm.pdf(a, u, math.sqrt(noise + s))
            * norm.pdf(b, 0.4 * (u**2 - 1), math.sqrt(noise + s))
        ).sum()

    def integrand(b, a):
        p = density(a, b)
        first = norm.pdf(a, 0, math.sqrt(1 + noise + s))
        return p * (math.log(p) - math.log(first * norm.pdf(b, 0, math.sqrt(s)))) if p > 0 else 0.0

    wide = 4 * math.sqrt(1 + s)
    if s == 1.0:  # the other values take longer
        found = dblquad(integrand, -wide, wide, -4 - wide, 8 + wide, epsabs=2e-4)[0]
        assert found == pytest.approx(exact, abs=5e-4)
    draws = normal(200_000, 3)
    x = torch.stack([draws[:, 0], 0.4 * (draws[:, 0] ** 2 - 1)], 1) + 0.1 * draws[:, 1:]
    first = linear(torch.tensor([[1.0], [0.0]]))
    lost = residuals(x, reconstruct(first, x))
    found = reconstruction_kl_bound(lost, math.sqrt(s)).mean().item()
    assert found == pytest.approx(bound, rel=0.02)
    assert found > exact
    assert reuse_sigma(lost, bound) == pytest.approx(math.sqrt(s), rel=0.01)


def test_a_fitted_price_is_the_law_where_the_law_is_gaussian():
    covariance = torch.diag(torch.tensor([3.0, 2.0, 0.5, 0.2], dtype=torch.float64))
    x = normal(40_000, 4) * covariance.diagonal().sqrt()
    keep = linear(torch.eye(4)[:, :2])
    train, held_out = x[:20_000], x[20_000:24_000]
    rec = reconstruct(keep, train).double()
    sigmas = torch.logspace(math.log10(0.5), 1.5, 20, dtype=torch.float64)
    gap = autoencoder_price(fit_gaussian, train, rec, held_out, sigmas, noise_draws=1)
    price = integrate_gap(gap)
    truth = latent_kl(covariance, torch.eye(4)[:, :2], 0.5).item()
    assert abs(price.value - truth) < 3 * price.stderr + 0.01 * truth
    assert price.value < reconstruction_kl_bound(residuals(train, rec), 0.5).mean()
    with pytest.raises(InstilError, match="share 4000 samples"):
        autoencoder_price(fit_gaussian, train, rec, train[:4000], sigmas)


def test_local_angles_of_a_plane():
    """Data in a plane, a decoder of a tilted one: the angles are those of the planes."""
    angles = torch.tensor([0.3, 0.9])
    whole = torch.linalg.qr(normal(8, 4))[0].float()
    plane, tilted = whole[:, :2], whole[:, :2] * angles.cos() + whole[:, 2:] * angles.sin()
    x = normal(300, 2).float() @ plane.mT
    mixing = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    bent = Autoencoder(lambda x: x @ tilted, lambda z: torch.sinh(z) @ mixing @ tilted.mT)
    found = local_angles(bent, x, around=100, neighbours=4)
    torch.testing.assert_close(found.radians.float(), angles, rtol=1e-3, atol=1e-3)
    assert abs(found.outside.value - (angles.sin() ** 2).mean()) < 3 * found.outside.stderr + 0.02
    aligned = local_angles(linear(plane), x, around=10)
    assert aligned.outside.value == pytest.approx(0, abs=1e-6)


def test_random_directions_bound_what_lies_outside():
    x = normal(60, 30).float()
    keep = linear(torch.eye(30)[:, :20])
    exact = local_angles(keep, x, around=20).outside.value
    fewer = local_angles(keep, x, around=20, directions=10).outside.value
    assert exact < fewer < 1
    # 10 random directions of 20: half of what the latents hold is missed
    assert fewer == pytest.approx(exact + (1 - exact) / 2, abs=0.1)


@pytest.fixture
def saved(tmp_path):
    """Folders of a tiny random AutoencoderKL and AutoencoderTiny."""
    kl = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
        sample_size=8,
    )
    kl.save_pretrained(tmp_path / "pipeline" / "vae")
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    )
    tiny.save_pretrained(tmp_path / "tiny")
    return {"pipeline": kl.eval(), "tiny": tiny.eval()}, tmp_path


@pytest.mark.parametrize("name", ["pipeline", "tiny"])
def test_autoencoders_of_diffusers(saved, name):
    models, folder = saved
    pixels = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    autoencoder = load_autoencoder(str(folder / name), (3, 8, 8), CPU)
    model, images = models[name], pixels.float() / 127.5 - 1
    with torch.no_grad():  # the whole AutoencoderTiny would round its latents to bytes between
        theirs = model(images) if name == "pipeline" else model.decode(model.encode(images).latents)
    theirs = theirs.sample
    torch.testing.assert_close(reconstruct(autoencoder, pixels, batch=3), theirs)
    found = local_angles(autoencoder, pixels, around=2, neighbours=2)
    assert 0 <= found.outside.value <= 1


def test_folders_that_hold_no_usable_autoencoder(saved, unet):
    _, folder = saved
    unet().save_pretrained(folder / "unet")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    for name, shape, message in [
        ("nowhere", (3, 8, 8), r"holds no config\.json"),
        ("unet", (3, 8, 8), "a UNet2DModel is not supported"),
        ("broken", (3, 8, 8), "cannot be loaded"),
        ("tiny", (1, 8, 8), "takes images of 3 channels, these have 1"),
        ("pipeline", (3, 9, 9), r"gives images of the shape \(3, 8, 8\) back for \(3, 9, 9\)"),
    ]:
        with pytest.raises(InstilError, match=message):
            load_autoencoder(str(folder / name), shape, CPU)


def test_what_is_no_reconstruction():
    x = normal(4, 3)
    with pytest.raises(InstilError, match="not finite"):
        reconstruct(Autoencoder(lambda x: x / 0, lambda z: z), x)
    with pytest.raises(InstilError, match="expected more than 0"):
        reuse_sigma(torch.ones(3), 0.0)
    with pytest.raises(InstilError, match="3 have no 4 neighbours"):
        local_angles(linear(torch.eye(3)), x[:3].float())
