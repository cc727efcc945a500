"""The bounds against closed forms, quadrature and the cases in which they hold with equality."""

import json
import math
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from scipy.integrate import quad, trapezoid
from scipy.stats import norm
from torch import nn

from eval.__main__ import main
from eval.cross_fitting import reference_law
from eval.curves import denoising_loss_curve, integrate_gap, loss_gap, noise_levels
from eval.horizon.bound import (
    BoundCurve,
    Memory,
    code_information,
    encoder_kl,
    generalization_bound,
    path_curve,
)
from eval.vae.bound import gaussian_code_kl, vae_bound
from experiments.horizon.horizon import ZeroScore
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.analytic import empirical, gaussian
from instructors.denoiser import Condition

# the uniform law on -1 and 1, each many times: the same law with more noise per evaluation
TWO_POINTS = torch.tensor([[-1.0], [1.0]]).double().repeat(300, 1)


def test_the_encoder_term_at_its_golden_value():
    """x = (1, -2, .5), integral of beta 2.3: in VP coordinates and, to the digit, in VE ones."""
    x = torch.tensor([[1.0, -2.0, 0.5]]).double()
    shrink = math.exp(-2.3)
    noise = 1 - shrink
    vp = 0.5 * (shrink * (x**2).sum().item() - 3 * (1 - noise) - 3 * math.log(noise))
    found = encoder_kl(x, math.sqrt(noise / shrink), reference_law("standard", x))
    assert found.item() == pytest.approx(0.27126344092857, rel=1e-12)
    assert vp == pytest.approx(0.27126344092857, rel=1e-12)
    assert encoder_kl(x, 3.0, reference_law("zero", x)).item() == pytest.approx(5.25 / 18)


def test_the_encoder_term_of_any_gaussian():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    root = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    mean, covariance = x[0] / 2, root @ root.mT
    found = encoder_kl(x, 0.7, gaussian(mean, covariance))
    one = torch.distributions.MultivariateNormal(x, 0.49 * torch.eye(4).double())
    other = torch.distributions.MultivariateNormal(mean, covariance + 0.49 * torch.eye(4).double())
    truth = torch.distributions.kl_divergence(one, other.expand((7,)))
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize(("s", "golden"), [(0.2, 0.65873438), (1.0, 0.33683082), (5.0, 0.09109069)])
def test_the_information_of_two_points(s, golden):
    def integrand(z):
        return norm.pdf(z) * math.log1p(math.exp(-2 * (1 + math.sqrt(s) * z) / s))

    assert math.log(2) - quad(integrand, -12, 12)[0] == pytest.approx(golden, abs=1e-8)
    found = code_information(TWO_POINTS, math.sqrt(s), noise_draws=30)
    assert found.mean().item() == pytest.approx(golden, abs=0.01)


def test_information_is_of_all_centres_and_bounded():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    one, two = (code_information(x, 0.5, batch=batch) for batch in (7, 50))
    assert one.mean().item() == pytest.approx(two.mean().item(), abs=0.05)  # other noise
    assert code_information(x, 1e-3).mean().item() == pytest.approx(math.log(50), rel=1e-6)
    assert code_information(x, 1e3).mean().item() == pytest.approx(0, abs=1e-4)


def test_the_mean_divergence_is_information_and_a_divergence_of_the_mixture():
    """E KL(code || prior) = I + KL(mixture || prior) = .625: two points, s = .8, prior N(0, s)."""
    z, s = np.linspace(-15, 15, 40001), 0.8
    mixed = 0.5 * sum(norm.pdf(z, m, math.sqrt(s)) for m in (-1, 1))
    apart = trapezoid(mixed * np.log(mixed / norm.pdf(z, 0, math.sqrt(s))), z)
    mean = encoder_kl(TWO_POINTS, math.sqrt(s), reference_law("zero", TWO_POINTS)).mean().item()
    assert mean == pytest.approx(0.625, rel=1e-12)
    information = code_information(TWO_POINTS, math.sqrt(s), noise_draws=30).mean().item()
    assert information + apart == pytest.approx(mean, abs=0.01)


def test_explicit_score_matching_is_denoising_less_a_constant():
    """On the empirical law of three points, at the golden value .29941."""
    points, s = torch.tensor([[-1.0], [0.3], [2.0]]).double(), 0.5
    z = np.linspace(-12, 14, 100_001)
    share = np.stack([norm.pdf(z, x, math.sqrt(s)) for x in points[:, 0].tolist()], 1)
    best = share @ points[:, 0].numpy() / share.sum(1)
    model = 0.4 * z + 0.1 * np.tanh(z)
    truth = trapezoid(share.mean(1) * (model - best) ** 2, z)
    assert truth == pytest.approx(0.29941, abs=1e-5)

    class Model(Memory):
        def denoise(self, noisy, sigma, condition):
            return 0.4 * noisy + 0.1 * noisy.tanh()

    sigmas = [math.sqrt(s), 1.0]
    many = points.repeat(400, 1)
    losses = [denoising_loss_curve(each, many, sigmas) for each in (Model(points), Memory(points))]
    gap = loss_gap(*losses)
    assert abs(gap.mean()[0].item() - truth) < 4 * gap.stderr()[0].item()


def test_memory_is_the_empirical_denoiser_and_knows_labels():
    x = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    noisy, sigma = x[:4] + 0.3, torch.tensor([0.01, 0.3, 1.0, 30.0]).double()
    torch.testing.assert_close(Memory(x)(noisy, sigma), empirical(x)(noisy, sigma))
    labels = torch.arange(9) % 3
    found = Memory(x, labels, 3)(noisy, sigma, Condition(label=torch.ones(4, dtype=torch.long)))
    torch.testing.assert_close(found, empirical(x[labels == 1])(noisy, sigma))


@pytest.fixture
def line():
    """A Gaussian on the line with its exact denoiser, sampled densely enough to be its law."""
    law = gaussian(torch.zeros(1).double(), torch.full((1, 1), 1.5).double())
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    return law, math.sqrt(1.5) * torch.special.ndtri(grid)[:, None]


@pytest.mark.parametrize("zero_score", [False, True])
def test_the_generator_term_in_closed_form(line, zero_score):
    """Against an atom: K(e) - K(T); against a score of zero: half log((l + T^2)/(l + e^2))."""
    law, x = line
    low, high = 0.2, 2.5
    reference = ZeroScore((1,)) if zero_score else reference_law("zero", x)
    curve = path_curve(law, x, noise_levels(low, high, 40), reference)
    ratios = [1.5 / low**2, 1.5 / high**2]
    information = 0.5 * (ratios[0] - math.log1p(ratios[0]) - ratios[1] + math.log1p(ratios[1]))
    truth = 0.5 * math.log((1.5 + high**2) / (1.5 + low**2)) if zero_score else information
    assert integrate_gap(curve).value == pytest.approx(truth, rel=0.02)


def test_the_bound_is_the_sum_of_its_terms_and_knows_when_its_minimum_moves():
    sigmas = noise_levels(0.1, 10, 8)
    zeros = torch.zeros(len(sigmas)).double()
    falling, rising = 1 / sigmas, sigmas.clone()
    curve = BoundCurve(sigmas, 0.3 + zeros, falling, 8 * rising**2, 2 * rising, count=2)
    by_hand = -0.3 + math.sqrt(2) * 5 * (falling + 2 * rising) + 2 * rising
    torch.testing.assert_close(curve.at(5.0), by_hand)
    assert curve.best(0.1) < curve.best(100.0)
    assert not curve.identified
    fixed = BoundCurve(sigmas, zeros, falling + rising, zeros, zeros, count=2)
    assert fixed.identified
    assert fixed.range()[0] == pytest.approx(1)


def test_the_minimum_at_large_constants_in_closed_form():
    """Zero reference, constant score norm L, mean norm M: T* = sqrt(M sqrt(m)/L)."""
    norm_of_score, norm_of_data, count = 2.0, 3.0, 50
    sigmas = noise_levels(0.5, 20, 200)
    curve = BoundCurve(
        sigmas,
        torch.zeros(len(sigmas)).double(),
        norm_of_data / (math.sqrt(2) * sigmas),  # root of |x|^2/(2 T^2)
        0.5 * norm_of_score**2 * sigmas**2,  # integral of sigma L^2
        torch.zeros(len(sigmas)).double(),
        count,
    )
    truth = math.sqrt(norm_of_data * math.sqrt(count) / norm_of_score)
    assert truth == pytest.approx(3.2568, abs=1e-4)
    assert curve.best(100.0) == pytest.approx(truth, rel=0.01)


def test_the_bound_lies_above_what_it_bounds(line):
    """Exact denoiser of a Gaussian: B, without its negative term, above the divergence at any T."""
    law, x = line
    some = x[::100]
    curve = generalization_bound(
        law, some, noise_levels(0.2, 20, 8), reference_law("gaussian", some), noise_draws=8
    )
    assert (curve.information <= math.log(len(some))).all()
    assert (curve.generator.diff() >= 0).all()
    # reverse SDE from N(0, T^2) with the exact score: variance l (1 - q^2)
    q = 1.5 / (1.5 + curve.sigmas**2)
    exact = 0.5 * (q**2 / (1 - q**2) + torch.log1p(-(q**2)))
    assert (curve.at(5.0) + curve.information >= exact).all()


def test_donsker_and_varadhan_with_equality():
    """A linear loss and a mean-shifted Gaussian code: the encoder term is attained."""
    c, eta = torch.tensor([0.3, -1.0, 0.5]).double(), 0.7
    r = c.norm().item()
    shift = eta * c  # along the loss: the change of E<c, z> is eta R^2
    kl = gaussian_code_kl(shift[None], torch.ones(1, 3).double()).item()
    assert (c @ shift).item() == pytest.approx(eta * r**2, rel=1e-14)
    assert r * math.sqrt(2 * kl) == pytest.approx(eta * r**2, rel=1e-14)


def test_the_vae_inequality_in_a_gaussian_case():
    """(2) for 1 - exp(-(x - g - z)^2/2): .4366 <= .1915 + .4510 + .1313.

    x ~ N(0, 1), m = 10, g = mean of the samples + N(0, .05), code N(.6 x, .3).
    """

    def loss(variance):
        return 1 - 1 / math.sqrt(1 + variance)

    left = loss(1 + 0.15 + 1)
    train = loss(0.4**2 + 0.15 - 2 * 0.4 / 10 + 0.3)
    x = torch.linspace(-9, 9, 20_001).double()
    kl = gaussian_code_kl(0.6 * x[:, None], torch.full((len(x), 1), math.sqrt(0.3)).double())
    density = torch.from_numpy(norm.pdf(x.numpy()))
    encoder = math.sqrt(2) * 0.5 * torch.trapezoid(density * kl.sqrt(), x).item()
    generator = math.sqrt(2) * 0.5 * math.sqrt(0.5 * math.log(0.15 / 0.14))
    golden = (0.4366, 0.1915, 0.4510, 0.1313)
    assert (left, train, encoder, generator) == pytest.approx(golden, abs=3e-4)
    assert left <= train + encoder + generator


class Linear(nn.Module):
    """x = 1/2 + W z; in [0, 1] for the codes below."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, codes):
        return 0.5 + codes @ self.weight.mT


def test_a_linear_vae_term_by_term():
    """KL (tr B + |A x|^2 - k - log det B)/2, errors |x - W A x|^2 + tr W B W', |x|^2 + tr W W'."""
    generator = torch.Generator().manual_seed(0)
    a, b = 0.3 * torch.randn(2, 4, generator=generator).double(), torch.tensor([0.3, 0.6]).double()
    w = 0.05 * torch.randn(4, 2, generator=generator).double()
    x = torch.rand(30, 4, generator=generator).double() - 0.5
    codes = x @ a.mT
    kl = 0.5 * (b.sum() + codes.square().sum(1) - 2 - b.log().sum())
    torch.testing.assert_close(gaussian_code_kl(codes, b.sqrt().expand(30, 2)), kl)
    found = vae_bound(
        lambda images: ((images - 0.5) @ a.mT, b.sqrt().expand(len(images), 2)),
        Linear(w),
        {"weight": w + 0.02},
        x[:20] + 0.5,
        x[20:] + 0.5,
        weight_noise=1e-6,
        draws=400,
    )
    assert found.encoder.value == pytest.approx(math.sqrt(0.5) * kl[:20].sqrt().mean().item())
    rebuilt = (x - codes @ w.mT)[:20].square().sum(1).mean() + (w**2 @ b).sum()
    direct = x[20:].square().sum(1).mean() + w.square().sum()
    assert found.reconstruction.value == pytest.approx(rebuilt.item() / 4, rel=5e-3)
    assert found.direct.value == pytest.approx(direct.item() / 4, rel=1e-2)
    information = 8 * 0.02**2 / 2e-12
    assert found.generator == pytest.approx(math.sqrt(0.5 * information / 20), rel=1e-6)
    assert found.vacuous


def test_the_vae_bound_holds_for_a_diffusers_autoencoder():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=2,
        sample_size=8,
    )
    decoder = nn.Sequential(vae.post_quant_conv, vae.decoder)
    initial = {name: weight.detach().clone() for name, weight in decoder.named_parameters()}
    images = torch.rand(24, 1, 8, 8)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    for _ in range(3):
        law = vae.encode(images[:16]).latent_dist
        loss = (vae.decode(law.mean).sample - images[:16]).square().mean() + 1e-3 * law.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def encode(x):
        law = vae.encode(x).latent_dist
        return law.mean, law.std

    found = vae_bound(encode, decoder, initial, images[:16], images[16:], weight_noise=0.05)
    assert found.direct.value <= found.total
    assert found.generator > 0
    law = vae.encode(images[:16]).latent_dist
    expected = math.sqrt(0.5) * law.kl().sqrt().mean().item()
    assert found.encoder.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("noise", "images", "message"),
    [
        (0.0, torch.rand(4, 4), "expected a positive number"),
        (0.1, torch.rand(4, 4) * 255, r"expected values in \[0, 1\]"),
        (0.1, torch.rand(1, 4), "expected at least 2"),
    ],
)
def test_what_no_bound_can_be_made_of(noise, images, message):
    weight = torch.zeros(4, 2)
    with pytest.raises(InstilError, match=message):
        vae_bound(
            lambda x: (x[:, :2], x[:, :2] + 1),
            Linear(weight),
            {"weight": weight},
            images,
            images,
            weight_noise=noise,
        )


QUICK = ["--samples", "20", "--draws", "1", "--folds", "1"]


def test_the_command_prints_the_bound_and_that_its_minimum_moves(tmp_path, capsys):
    words = ["horizon", "--model", "digits", "--data", "digits:held-out", *QUICK, "--bound"]
    assert main([*words, "--subgaussian", "5", "--json", str(tmp_path / "r.json")]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())["bound"]
    assert set(facts["minimum"]) == {"0.1", "1", "5", "10", "100"}
    assert facts["samples"] == 20
    assert facts["identified"] is False
    assert max(facts["information"]) <= math.log(20) + 1e-6
    assert "not identified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--bound", "--subgaussian", "-1"],
            "--subgaussian: input should be greater than 0, got -1",
        ),
        (["--bound", "--subgaussian", "inf"], "--subgaussian: input should be a finite number"),
        (["--subgaussian", "1"], "--subgaussian: a constant of --bound; give both"),
        (
            ["--bound", "--folds", "2"],
            "--bound: for a trained model and its images; give --folds 1",
        ),
        (["--bound", "--model", "{tmp}"], "the training images of .* are unknown"),
    ],
)
def test_wrong_input_is_one_sentence(words, message, tmp_path, capsys, unet):
    from diffusers import EDMEulerScheduler

    unet().save_pretrained(tmp_path)
    EDMEulerScheduler().save_pretrained(tmp_path)
    words = [word.format(tmp=tmp_path) for word in words]
    base = ["horizon", "--model", "digits", "--data", "digits:held-out", *QUICK]
    assert main([*base, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_draws_are_of_the_sample_not_of_the_batch():
    x = torch.randn(6, 2).double()
    draws = Draws.of_range(0, 0, 0, 6).normal("code", (2,), torch.float64)
    one = code_information(x, 1.0, noise_draws=1, batch=6)
    far = -(x[:, None] + draws[:, None] - x[None]).square().sum(-1) / 2
    truth = math.log(6) - (far + draws.square().sum(-1)[:, None] / 2).logsumexp(1)
    torch.testing.assert_close(one, truth)
