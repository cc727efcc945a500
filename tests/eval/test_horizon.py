"""The certificate against closed forms, quadrature and crossings found by other means."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import quad, trapezoid
from scipy.optimize import brentq
from scipy.stats import norm

from eval.__main__ import main
from eval.card import training_images
from eval.cross_fitting import Losses, cross_fitted, folds_of, paired_losses, reference_law
from eval.curves import LossCurve, denoising_loss_curve, gaussian_loss_curve, noise_levels
from eval.horizon import pretrained
from eval.horizon.answer import verdict
from eval.horizon.certificate import crossings, horizon
from eval.questions import Horizon
from instil.base.data import load as load_images
from instil.base.errors import InstilError
from instructors.analytic import empirical, fit_gaussian, gaussian, mixture
from instructors.files.sources import ZOO

VARIANCES = np.array([4, 2, 1, 0.5, 0.2, 0.1])


def losses_of(model, reference, sigmas):
    """Exact mean losses as the curves of two samples."""
    curves = (
        LossCurve(
            sigmas,
            torch.tensor([law(s) for s in (sigmas**2).tolist()], dtype=torch.float64).expand(2, -1),
            "x",
        )
        for law in (model, reference)
    )
    return Losses(*curves)


@pytest.fixture
def few():
    """A Gaussian of independent features fitted to 12 samples, and its population loss."""
    x = np.random.default_rng(2).standard_normal((12, 6)) * np.sqrt(VARIANCES)
    mean, fitted = x.mean(0), x.var(0)

    def loss(s):
        shrunk = (s / (fitted + s)) ** 2 * (VARIANCES + mean**2) + (fitted / (fitted + s)) ** 2 * s
        return shrunk.sum()

    return mean, fitted, loss


REFERENCE_LOSSES = {
    "zero": lambda s: VARIANCES.sum(),
    "standard": lambda s: ((s / (1 + s)) ** 2 * VARIANCES + s / (1 + s) ** 2).sum(),
}


@pytest.mark.parametrize("kind", ["zero", "standard"])
def test_the_certificate_is_least_where_the_losses_cross(few, kind):
    """(2) for the priors of VE and VP: the crossing by bisection, the minimum by integration."""
    *_, loss = few
    reference = REFERENCE_LOSSES[kind]
    truth = math.sqrt(brentq(lambda s: loss(s) - reference(s), 1, 1000))
    found = horizon(losses_of(loss, reference, noise_levels(0.03, 300, 100)), 1e-6)
    assert found.crossings == pytest.approx([truth], rel=1e-3)
    assert found.best.value == pytest.approx(truth, rel=1e-3)
    assert not found.collapsed
    assert not found.unbounded


PRIOR_KL = {  # E KL(N(x, s) || v_s)
    "zero": lambda s: VARIANCES.sum() / (2 * s),
    "standard": lambda s: (
        0.5 * (VARIANCES.sum() / (1 + s) + 6 * (s / (1 + s) - 1 - math.log(s / (1 + s))))
    ),
}


@pytest.mark.parametrize(("kind", "slope"), [("zero", -0.161586), ("standard", -0.034500)])
def test_the_certificate_is_the_models_loss_and_the_divergence_of_the_prior(few, kind, slope):
    """(1) by quadrature up to T, the rest in closed form; its slope in T^2 at 3."""
    *_, loss = few
    sigmas = noise_levels(0.05, 100, 100)
    found = horizon(losses_of(loss, REFERENCE_LOSSES[kind], sigmas)).nats
    for k in (100, 200, 330):
        low, high = sigmas[0].item(), sigmas[k].item()
        model = quad(
            lambda t: loss(math.exp(2 * t)) * math.exp(-2 * t), math.log(low), math.log(high)
        )[0]
        exact = model + PRIOR_KL[kind](high**2) - PRIOR_KL[kind](low**2)
        assert found[k].item() == pytest.approx(exact, rel=1e-3, abs=1e-2)
    position = 2 * sigmas.log().numpy()  # of T^2
    found = np.interp(math.log(3), position, np.gradient(found.numpy(), position)) / 3
    assert found == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("kind", ["zero", "standard"])
def test_references_are_the_priors_of_ve_and_vp(few, kind):
    """Their losses in closed form, and samples of the law they are measured on."""
    x = np.random.default_rng(0).standard_normal((4000, 6)) * np.sqrt(VARIANCES)
    samples = torch.from_numpy(x)
    law, sigmas = reference_law(kind, samples), torch.tensor([0.5, 2.0, 8.0]).double()
    found = gaussian_loss_curve(law, samples, sigmas)
    truth = torch.tensor([REFERENCE_LOSSES[kind](s) for s in (sigmas**2).tolist()])
    assert ((found.mean() - truth).abs() < 4 * found.stderr() + 1e-9).all()
    drawn = denoising_loss_curve(law, samples, sigmas)
    assert ((drawn.mean() - truth).abs() < 4 * drawn.stderr() + 1e-9).all()


@pytest.mark.parametrize(("count", "golden"), [(16, 16.9443), (100, 100.9902), (1000, 1000.999)])
def test_the_minimum_for_a_gaussian_with_an_estimated_mean(count, golden):
    """N(0, l), model N(mean of n, l), reference 0: T^2/l = (n + sqrt(n^2 + 4n))/2, on average."""
    variance = 1.5

    def loss(s):
        return variance * s / (variance + s) + (s / (variance + s)) ** 2 * variance / count

    sigmas = noise_levels(0.1, 200, 200)
    found = horizon(losses_of(loss, lambda s: variance, sigmas), 1e-9)
    assert (count + math.sqrt(count**2 + 4 * count)) / 2 == pytest.approx(golden, rel=1e-5)
    assert found.best.value**2 / variance == pytest.approx(golden, rel=1e-3)
    assert found.crossings[0] ** 2 / variance == pytest.approx(golden, rel=1e-3)


@pytest.mark.parametrize("count", [16, 100, 1000])
def test_the_certificate_bounds_the_exact_divergence(count):
    """The same model: E KL of what the reverse SDE generates at sigma 0 is known for every T."""
    variance, sigmas = 1.0, noise_levels(1e-3, 300, 200)

    def loss(s):
        return variance * s / (variance + s) + (s / (variance + s)) ** 2 * variance / count

    nats = horizon(losses_of(loss, lambda s: variance, sigmas)).nats
    s, last = sigmas**2, sigmas[-1] ** 2
    q = variance / (variance + s)
    exact = 0.5 * (q**2 / (1 - q**2) + torch.log1p(-(q**2))) + (1 - q) / (1 + q) / (2 * count)
    # up to its constant: at T = infinity the certificate is the divergence, 1/(2n)
    rest = 0.5 * (variance / last - math.log1p(variance / last))
    rest = rest + last / (2 * count * (variance + last))
    bound = nats - nats[-1] + rest
    wide = s > 0.1
    assert (bound >= exact - 1e-6).all()
    assert bound[-1] == pytest.approx(exact[-1].item(), rel=1e-2)
    # the true best T is smaller: n q^3 = (1 - q)^2
    best = q[exact[wide].argmin() + (~wide).sum()].item()
    assert count * best**3 == pytest.approx((1 - best) ** 2, rel=0.05)
    assert s[bound.argmin()] > s[(q - best).abs().argmin()]


MODES = mixture(
    torch.ones(2, dtype=torch.float64),
    torch.tensor([[-3.0], [3.0]], dtype=torch.float64),
    torch.full((2, 1, 1), 0.25, dtype=torch.float64),
    sigma_min=0.01,
    sigma_max=100.0,
)
MATCHED = gaussian(torch.zeros(1).double(), torch.full((1, 1), 9.25).double())
LINE = np.linspace(-60, 60, 20001)


def modes_losses(sigmas):
    """Losses of the exact denoiser of two modes and of its moment-matched Gaussian's."""
    model, reference = [], []
    for level in sigmas.tolist():
        noisy = torch.from_numpy(LINE)[:, None]
        sigma = torch.full((len(LINE),), level, dtype=torch.float64)
        density = MODES.log_density(noisy, sigma).exp().numpy()
        best = MODES(noisy, sigma)[:, 0].numpy()
        other = MATCHED(noisy, sigma)[:, 0].numpy()
        second = 9.25 - trapezoid(density * best**2, LINE)  # E|x|^2 - E|D*|^2
        model.append(second)
        reference.append(second + trapezoid(density * (best - other) ** 2, LINE))
    return Losses(
        *(LossCurve(sigmas, torch.tensor(each).expand(2, -1), "x") for each in (model, reference))
    )


def test_what_the_certificate_still_falls_is_the_divergence_from_the_reference():
    """J(T) - J(infinity) = KL(p_T || v_T) for the exact denoiser, at the golden values."""
    sigmas = noise_levels(0.05, 100, 120)
    found = horizon(modes_losses(sigmas))
    for level, golden in ((2.0, 0.0554), (2.5, 0.0218), (3.0, 0.0091)):
        density = 0.5 * sum(norm.pdf(LINE, m, math.sqrt(0.25 + level**2)) for m in (-3, 3))
        matched = norm.pdf(LINE, 0, math.sqrt(9.25 + level**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            kl = np.nansum(density * np.log(density / matched)) * (LINE[1] - LINE[0])
        assert kl == pytest.approx(golden, abs=5e-5)
        at = np.interp(math.log(level), sigmas.log().numpy(), found.nats.numpy())
        assert at - found.nats[-1].item() == pytest.approx(kl, rel=5e-3)
    assert 2.5 < found.sufficient.value < 2.6


def trained_student(sigma_max, steps=1500, nodes=40):
    """Diff-Instruct by quadrature from one mode: weight sigma^2 d log sigma, exact fake score."""
    z, w = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(nodes))
    levels = noise_levels(0.05, sigma_max, 16)[:, None]
    ends = torch.ones_like(levels)
    ends[0] = ends[-1] = 0.5  # without this, what the highest level adds is twice its share
    w = w / w.sum() * ends / ends.sum()
    sigma = levels.expand(-1, nodes).reshape(-1)
    mean, scale = torch.tensor(3.0).double(), torch.tensor(0.5).double()
    for _ in range(steps):
        total = (scale**2 + levels**2).sqrt()
        noisy = mean + total * z
        mine = mean + scale**2 / total**2 * (noisy - mean)
        best = MODES(noisy.reshape(-1, 1), sigma).view_as(noisy)
        # weight sigma^2 times the scores' difference (D_q - D_p)/sigma^2, times dx/d(mean, scale)
        push = w * (mine - best)
        mean, scale = mean - push.sum(), scale - (push * z * scale / total).sum()
    return mean.item(), scale.item() ** 2


def test_a_student_on_one_mode_escapes_only_if_sigma_max_reaches_the_horizon():
    """At T_eps of 0.02 nats it is still caught, at T_eps of 0.01 it leaves: 2.56 and 2.96."""
    losses = modes_losses(noise_levels(0.05, 100, 24))
    caught, free = (horizon(losses, nats).sufficient.value for nats in (0.02, 0.01))
    for sigma_max in (0.6 * caught, 0.8 * caught, caught):
        mean, variance = trained_student(sigma_max)
        assert mean > 2.5
        assert variance < 1
    mean, variance = trained_student(free)
    assert abs(mean) < 0.01
    assert variance == pytest.approx(7.1, abs=0.2)


@pytest.fixture
def cloud():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, dtype=torch.float64, generator=generator) * torch.tensor(
        [2.0, 1.0, 0.5, 0.1]
    )


def test_every_loss_is_of_a_model_that_has_not_seen_the_sample(cloud):
    """Cross-fitted Gaussians against Gaussians fitted by hand, noise averaged exactly."""
    sigmas, seen = noise_levels(0.1, 10), []

    def fit(rows):
        seen.append(rows)
        return fit_gaussian(cloud[rows])

    found = cross_fitted(fit, cloud, sigmas, folds=4, noise_draws=1)
    torch.testing.assert_close(found.model.losses, found.reference.losses)  # one and the same law
    assert len(seen) == 4
    for rows, kept in zip(folds_of(60, 4), seen, strict=True):
        assert sorted([*rows.tolist(), *kept.tolist()]) == list(range(60))
        exact = gaussian_loss_curve(fit_gaussian(cloud[kept]), cloud[rows], sigmas)
        torch.testing.assert_close(found.reference.losses[rows], exact.losses)
    assert horizon(found).gain.value == pytest.approx(0, abs=1e-9)


def test_a_memorising_model_is_found_out(cloud):
    """The empirical denoiser knows its samples to the last digit and nothing else."""
    found = horizon(
        cross_fitted(
            lambda rows: empirical(cloud[rows], sigma_min=0.01), cloud, noise_levels(0.1, 20)
        )
    )
    assert found.collapsed
    assert found.gain.value == 0
    assert found.memorization_gap.clear
    assert found.memorization_gap.value > 10
    trained = cross_fitted(
        lambda rows: gaussian(cloud.new_zeros(4), torch.diag(cloud.new_tensor([4, 1, 0.25, 0.01]))),
        cloud,
        noise_levels(0.1, 20),
        reference="zero",
    )
    honest = horizon(trained)
    assert not honest.memorization_gap.clear
    assert honest.gain.clear
    assert "its loss on its training data" in verdict(found, "gaussian")
    assert verdict(found, "gaussian").startswith("Do not distil this")
    assert "Run it over its whole range" in verdict(honest, "zero")


def test_the_control_variate_keeps_the_mean_and_removes_noise(cloud):
    law, sigmas = gaussian(cloud.new_zeros(4), 0.8 * torch.eye(4).double()), noise_levels(0.05, 1)
    exact = gaussian_loss_curve(law, cloud, sigmas)
    paired, _ = paired_losses(law, fit_gaussian(cloud), cloud, sigmas, noise_draws=8)
    plain = denoising_loss_curve(law, cloud, sigmas, noise_draws=8)
    error = (paired.losses - exact.losses).square().mean(0)
    assert (error[:4] < 0.1 * (plain.losses - exact.losses).square().mean(0)[:4]).all()
    assert (paired.mean() / exact.mean() - 1).abs().max() < 0.05


def test_crossings_are_all_listed_and_noise_makes_none():
    sigmas = noise_levels(0.1, 10, 50)
    wave = torch.sin(2 * sigmas.log()) * sigmas**2
    found = crossings(LossCurve(sigmas, wave.expand(2, -1), "x"))
    assert found == pytest.approx([math.exp(k * math.pi / 2) for k in (-1, 0, 1)], rel=1e-4)
    noise = torch.randn(50, len(sigmas), generator=torch.Generator().manual_seed(0))
    assert len(crossings(LossCurve(sigmas, 1e-3 * wave + noise.double(), "x"))) < 8


def test_standard_errors_are_those_of_the_samples():
    """The gain of a known law over N(0, 1) on fresh samples scatters as its standard error says."""
    law = gaussian(torch.zeros(1).double(), torch.full((1, 1), 0.25).double())
    gains = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = 0.5 * torch.randn(80, 1, dtype=torch.float64, generator=generator)
        found = horizon(
            cross_fitted(
                lambda rows: law,
                x,
                noise_levels(0.05, 50, 4),
                reference="standard",
                trained=False,
                folds=2,
                noise_draws=2,
            )
        )
        gains.append((found.gain.value, found.gain.stderr))
    values, errors = np.array(gains).T
    assert 0.5 < errors.mean() / values.std() < 2
    assert found.memorization_gap is None


QUICK = ["--samples", "30", "--draws", "1", "--folds", "1"]


def test_the_command_answers_with_errors_and_a_picture(tmp_path, capsys):
    words = ["horizon", "--model", "digits", "--data", "digits:held-out", *QUICK]
    paths = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    assert main([*words, *paths]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())
    for key in ("T_opt", "T_eps", "gain", "memorization_gap"):
        assert set(facts[key]) == {"value", "stderr"}, key
    assert facts["distil"] is True
    assert facts["gain"]["value"] > 30
    assert 3 < facts["T_eps"]["value"] < 80
    assert len(facts["curve"]["sigma"]) == len(facts["curve"]["nats"])
    assert facts["command"].startswith("python -m eval horizon --model digits")
    printed = " ".join(capsys.readouterr().out.split())
    assert "30 images of digits:held-out" in printed
    assert facts["verdict"] in printed
    assert (tmp_path / "r.png").stat().st_size > 5000


def test_without_images_its_own_samples_are_looked_at(tmp_path, capsys):
    words = ["horizon", "--model", "digits", *QUICK, "--json", str(tmp_path / "r.json")]
    assert main(words) == 0
    assert json.loads((tmp_path / "r.json").read_text())["memorization_gap"] is None
    assert "memorisation cannot be seen" in capsys.readouterr().err


TINY = [
    "network={channels: [8, 8], layers: 1, middle_attention: false, groups: 4}",
    "steps=3",
    "batch=4",
]


def test_folds_are_trained_by_the_recipe(tmp_path):
    words = ["horizon", "--model", "digits", "--data", "digits:0-1", "--folds", "2", *QUICK[:4]]
    assert main([*words, *TINY, "--json", str(tmp_path / "r.json")]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())
    assert "2 folds of 30 images of digits:0-1" in facts["protocol"]
    assert facts["memorization_gap"]["stderr"] > 0
    assert facts["distil"] is False  # three updates teach nothing


def test_models_that_ask_for_prompts_are_refused(monkeypatch):
    instructor = pretrained.load("digits")
    instructor.denoiser.text = ("prompt",)
    monkeypatch.setattr(pretrained, "load", lambda source: instructor)
    with pytest.raises(InstilError, match="digits: makes latents or asks for prompts"):
        pretrained.measure_pretrained(Horizon(model="digits", folds=1))


def test_training_images_are_named_by_the_card(tmp_path):
    assert training_images(ZOO / "digits").digest() == load_images("digits").digest()
    assert training_images(tmp_path) is None
    text = (ZOO / "digits" / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("e431aa36", "00000000"))
    assert training_images(tmp_path) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "digits"], "share 30 samples|share 1198 samples"),
        (["--data", "digits:all"], "share 1198 samples"),
        (["--data", "nowhere"], "nowhere: no such file"),
        (
            ["--data", "{tmp}/large.npz"],
            r"of the shape \(1, 4, 4\), digits makes \(1, 8, 8\)",
        ),
        (["--data", "{tmp}/plain.npz"], "no classes, digits knows 10"),
        (["--data", "digits:held-out:0-4"], "5 classes, digits knows 10"),
        (["--data", "digits:held-out", "--plot", "{tmp}/no/r.png"], "there is no folder"),
        (["--data", "digits:held-out", "steps=3"], "steps=3: nothing is trained with --folds 1"),
        (["--data", "digits:held-out", "--lowest", "90"], "expected 0 < lowest < highest"),
        (
            ["--data", "digits:held-out", "--lowest", "nan"],
            "--lowest: input should be a finite number",
        ),
        (["--data", "digits:held-out", "--plot", "r.xyz"], "r.xyz: expected a file ending in .png"),
        (["--data", "digits:held-out", "--json", "{tmp}"], "is a folder; name a file in it"),
        (["--folds", "2", "--kappas", ""], "--kappas: tuple should have at least 1 item"),
        (
            ["--data", "digits:held-out", "--tolerance", "0"],
            "--tolerance: .* greater than 0",
        ),
        (
            ["--data", "digits:held-out", "--reference", "gauss"],
            "--reference: input .* 'gaussian'",
        ),
        (
            ["--data", "digits:held-out", "--draws", "0"],
            "--draws: input should be greater than 0, got 0",
        ),
        (["--data", "digits:held-out", "--samples", "3"], "--samples 3: expected 10 or more"),
        (["--folds", "0"], "--folds: input should be greater than 0, got 0"),
        (["--folds", "2", "--model", "{tmp}"], "no recipe to train folds by"),
        (["--folds", "40", "--data", "{tmp}/plain.npz"], "--samples 30: expected 80 or more"),
        (["--folds", "9", "--data", "{tmp}/plain.npz"], "9 of 12 samples; expected at least 2"),
        (["--folds", "2", "--data", "digits", "stepz=3"], "did you mean steps"),
        (["--folds", "2", "--trained-on", "digits"], "folds are trained on --data; leave it out"),
        (["--model", "nowhere"], "nowhere: expected the folder of a diffusers model"),
    ],
)
def test_wrong_input_is_one_sentence(words, message, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", images=pixels)
    np.savez(tmp_path / "large.npz", images=pixels[:, :4, :4])
    words = [word.format(tmp=tmp_path) for word in words]
    assert main(["horizon", "--model", "digits", *QUICK, *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert re.search(message, error[0]), error[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cross_fitted(empirical, x[:3], noise_levels(0.1, 1)), "5 of 3 samples"),
        (lambda x: noise_levels(1, 0.1), "expected 0 < lowest < highest"),
        (lambda x: cross_fitted(empirical, x * math.inf, noise_levels(0.1, 1)), "not finite"),
    ],
)
def test_what_cannot_be_asked(cloud, call, message):
    with pytest.raises(InstilError, match=message):
        call(cloud)
