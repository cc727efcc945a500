"""Penalties of training: their exact values, what they do to few images, and their choice."""

import json

import pytest
import torch
from diffusers import UNet2DModel

from eval.__main__ import main as evaluate
from instil.base import data
from instil.base.draws import Draws
from instructors.__main__ import main
from instructors.adapters.karras import Karras
from instructors.analytic import fit_gaussian, gaussian
from instructors.denoiser import Condition, score
from instructors.load import load
from instructors.training.penalties import (
    ReferencePath,
    ScoreGradient,
    reference_path,
    score_gradient,
)

COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 0.5]]).double()
LAW = gaussian(torch.tensor([1.0, -1.0]).double(), COVARIANCE)


def test_the_score_penalty_is_the_jacobian_of_the_score():
    """A Gaussian's score is linear: sigma^4 |(S + s)^-1|_F^2, from probes along the axes."""
    sigma = torch.tensor([0.3, 1.0, 4.0]).double()
    noisy = torch.randn(3, 2, dtype=torch.float64)
    total = torch.zeros(3).double()
    for axis in torch.eye(2).double():
        leaf = noisy.clone().requires_grad_()
        total += score_gradient(LAW(leaf, sigma), leaf, axis.expand(3, 2)).detach()
    for k, s in enumerate((sigma**2).tolist()):
        jacobian = torch.linalg.inv(COVARIANCE + s * torch.eye(2).double())
        assert total[k].item() == pytest.approx(s**2 * jacobian.square().sum().item(), rel=1e-10)
        exact = torch.autograd.functional.jacobian(
            lambda x, k=k: score(LAW(x[None], sigma[k : k + 1]), x[None], sigma[k : k + 1])[0],
            noisy[k],
        )
        torch.testing.assert_close(exact, -jacobian)


def test_normal_probes_make_the_score_penalty_unbiased():
    noisy = torch.zeros(20_000, 2).double().requires_grad_()
    sigma = torch.ones(20_000).double()
    probe = Draws.of_range(0, 0, 0, 20_000).normal("probe", (2,), torch.float64)
    found = score_gradient(LAW(noisy, sigma), noisy, probe)
    truth = torch.linalg.inv(COVARIANCE + torch.eye(2).double()).square().sum()
    assert abs(found.mean() - truth) < 4 * found.std() / 20_000**0.5


def test_the_reference_penalty_is_a_weighted_distance_of_denoisers():
    other = gaussian(torch.zeros(2).double(), torch.eye(2).double())
    noisy, sigma = torch.randn(5, 2).double(), torch.full((5,), 2.0).double()
    weight = torch.arange(5).double()
    found = reference_path(LAW(noisy, sigma), noisy, sigma, weight, other)
    truth = weight * (LAW(noisy, sigma) - noisy / 5).square().sum(1)
    torch.testing.assert_close(found, truth)


def test_penalties_reach_every_weight_also_through_attention():
    """Both terms, as training calls them, on a network with attention."""
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        norm_num_groups=4,
    )
    denoiser = Karras(network, (1, 8, 8))
    images = torch.randn(20, 1, 8, 8)
    draws = Draws.of_range(0, 0, 0, 4)
    for penalty in (ReferencePath(kappa=0.5), ScoreGradient(kappa=0.5)):
        noisy, sigma = images[:4].clone(), torch.full((4,), 0.5)
        term = penalty.term(images)
        with penalty.forward(noisy):
            denoised = denoiser(noisy, sigma)
        denoiser.zero_grad()
        term(denoised, noisy, sigma, torch.ones(4), draws).mean().backward()
        missing = [
            name
            for name, weight in denoiser.named_parameters()
            if weight.grad is None or not weight.grad.isfinite().all()
        ]
        # what is added to the output has no part in its derivative by the input
        free = [] if isinstance(penalty, ReferencePath) else ["network.conv_out.bias"]
        assert [name for name in missing if name not in free] == []


TINY = [
    "network={channels: [8, 8], layers: 1, middle_attention: false, groups: 4}",
    "batch=16",
    "optimizer={lr: 5e-3, warmup: 5}",
    "average=200",
    "save_every=500",
]


def distance_to_the_gaussian(folder, images):
    denoiser, law = load(str(folder)).denoiser, fit_gaussian(data.to_float(images.pixels)).float()
    draws = Draws.of_range(9, 0, 0, 64)
    rows = draws.integers("row", len(images))
    noisy = data.to_float(images.pixels[rows]) + draws.normal("noise", images.shape)
    sigma = torch.ones(64)
    with torch.no_grad():
        apart = denoiser(noisy, sigma, Condition(label=images.labels[rows])) - law(noisy, sigma)
    return apart.square().mean().item()


def test_no_penalty_and_one_of_strength_zero_are_the_same(tmp_path):
    words = ["train", "data=digits:0-1", *TINY, "steps=4", f"output={tmp_path}"]
    assert main([*words, "name=none"]) == 0
    assert main([*words, "name=zero", "penalty=score_gradient", "penalty.kappa=0"]) == 0
    one, two = (load(str(tmp_path / name / "instructor")).card.sha256 for name in ("none", "zero"))
    assert one == two


@pytest.mark.slow
def test_a_strong_reference_penalty_makes_the_gaussians_denoiser(tmp_path):
    words = ["train", "data=digits:0-1", *TINY, "steps=200", "batch=32", f"output={tmp_path}"]
    assert main([*words, "name=none"]) == 0
    assert main([*words, "name=strong", "penalty=reference_path", "penalty.kappa=30"]) == 0
    images = data.load("digits:0-1")
    none, strong = (
        distance_to_the_gaussian(tmp_path / name / "instructor", images)
        for name in ("none", "strong")
    )
    assert strong < 0.5 * none


def test_the_score_penalty_trains(tmp_path):
    words = ["train", "data=digits:0-1", *TINY, "steps=3", f"output={tmp_path}", "name=a"]
    assert main([*words, "penalty=score_gradient", "penalty.kappa=0.1"]) == 0
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] > 0


def test_the_command_chooses_a_strength(tmp_path, capsys):
    words = ["horizon", "--model", "digits", "--data", "digits:0-1", "--folds", "2"]
    words += ["--samples", "24", "--draws", "1", "--kappas", "0.5", "--json", str(tmp_path / "r")]
    assert evaluate([*words, "penalty=reference_path", *TINY, "steps=3"]) == 0
    facts = json.loads((tmp_path / "r").read_text())["kappa"]
    assert [each["kappa"] for each in facts["tried"]] == [0, 0.5]
    assert facts["chosen"] in (0, 0.5)
    assert facts["tried"][0]["less_none"] == {"value": 0, "stderr": 0}
    assert "kappa chosen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kappas", "0.1"], "--kappas: the recipe has no penalty"),
        (["--kappas", "0.1;2", "penalty=reference_path"], "input should be a valid number"),
        (["--kappas", "-1", "penalty=reference_path"], "input should be greater than 0"),
        (["--kappas", "0.1", "--folds", "1"], "--kappas: nothing is trained with --folds 1"),
        (["penalty=path"], "unknown kind 'path', expected reference_path, score_gradient"),
        (["penalty={kind: score_gradient, kappa: -1}"], "greater than or equal to 0"),
    ],
)
def test_wrong_input_is_one_sentence(words, message, capsys):
    assert evaluate(["horizon", "--model", "digits", "--data", "digits:0-1", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
