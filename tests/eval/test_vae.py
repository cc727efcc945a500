"""`python -m eval vae-bound`: its terms where they are known, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from eval.__main__ import main
from eval.curves import Estimate
from eval.vae.ask import verdict
from eval.vae.bound import VAEBound
from instil.base import data


@pytest.fixture
def files(tmp_path):
    """Image files: training images, others, and some that do not fit."""
    generator = torch.Generator().manual_seed(0)
    made = {
        name: torch.randint(0, 256, (count, side, side), dtype=torch.uint8, generator=generator)
        for name, count, side in (("training", 40, 8), ("others", 24, 8), ("wide", 9, 12))
    }
    made["shared"] = torch.cat([made["training"][:2], made["others"]])
    made["flat"] = torch.full((9, 8, 8), 7, dtype=torch.uint8)
    for name, pixels in made.items():
        np.savez(tmp_path / f"{name}.npz", images=pixels.numpy())
    return tmp_path


@pytest.fixture
def autoencoder(files):
    """The folder of a tiny one, its decoder moved by `shift` from what seed 3 makes."""

    def make(shift=0.0, channels=1):
        torch.manual_seed(3)
        network = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(4,),
            norm_num_groups=2,
            latent_channels=2,
        )
        for part in (network.decoder, network.post_quant_conv):
            for weight in part.parameters():
                weight.data.add_(shift)
        network.save_pretrained(files / "vae")
        return network

    return make


def words(files, source, training="training", others="others"):
    source = "mlp" if source == "mlp" else str(files / source)
    named = [str(files / f"{name}.npz") for name in (training, others)]
    start = ["vae-bound", "--autoencoder", source, "--trained-on", named[0], "--data", named[1]]
    return [*start, "--draws", "3"]


def run(files, source, *more):
    assert main([*words(files, source), "--json", str(files / "r.json"), *more]) == 0
    return json.loads((files / "r.json").read_text())


def test_the_terms_of_a_diffusers_autoencoder(files, autoencoder, capsys):
    network = autoencoder(shift=0.01)
    found = run(files, "vae", "--seed", "3", "--weight-noise", "0.02")
    parts = (network.decoder, network.post_quant_conv)
    count = sum(p.numel() for part in parts for p in part.parameters())
    information = count * 0.01**2 / (2 * 0.02**2)
    assert found["generator"] == pytest.approx(math.sqrt(information / 40 / 2), rel=1e-4)
    images, others = (data.load(str(files / f"{n}.npz")).pixels for n in ("training", "others"))
    with torch.no_grad():
        law = network.encode(images.float() / 127.5 - 1).latent_dist
        encoder = (law.kl() / 2).sqrt().mean().item()
        torch.manual_seed(1)
        made = network.decode(torch.randn(24, 2, 8, 8)).sample / 2 + 0.5
    assert found["encoder"]["value"] == pytest.approx(encoder, rel=1e-4)
    direct = (made.clamp(0, 1) - others.float() / 255).square().mean().item()
    assert found["direct"]["value"] == pytest.approx(direct, rel=0.25)
    total = found["reconstruction"]["value"] + found["encoder"]["value"] + found["generator"]
    assert found["total"] == pytest.approx(total)
    assert capsys.readouterr().out.startswith("Vacuous, as this bound is as a rule: ")


def test_a_decoder_that_learnt_nothing_knows_nothing(files, autoencoder):
    autoencoder()
    assert run(files, "vae", "--seed", "3")["generator"] == 0


def test_some_images_stand_for_all_that_it_was_trained_on(files, autoencoder):
    autoencoder(shift=0.01)
    whole, some = run(files, "vae"), run(files, "vae", "--samples", "20")
    assert some["generator"] == pytest.approx(whole["generator"])
    assert "20 of 40 training images" in some["protocol"]


def test_a_small_one_is_trained_first(files):
    found = run(files, "mlp")
    noise = (torch.rand(10_000) - 0.5).square().mean().item()  # of uniform pixels about their mean
    assert found["reconstruction"]["value"] < 0.95 * noise
    assert found["direct"]["value"] > noise
    assert found["direct"]["value"] <= found["total"]


def test_a_bound_that_says_something():
    of = Estimate(0.1, 0.0)
    sentence = verdict(VAEBound(of, of, 0.2, Estimate(0.15, 0.0)))
    assert sentence.startswith(
        "The loss of unseen images against samples of the prior is at most 0.4"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weight-noise", "0"], "--weight-noise: input should be greater than 0, got 0"),
        (["--samples", "1"], "--samples: input should be greater than or equal to 2, got 1"),
        (["--draws", "0"], "--draws: input should be greater than 0, got 0"),
        (["--json", "nowhere/r.json"], "--json nowhere/r.json: there is no folder nowhere"),
    ],
)
def test_settings_that_mean_nothing(files, more, message, capsys):
    assert main([*words(files, "mlp"), *more]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "training", "others", "message"),
    [
        ("nothing", "training", "others", "holds no config.json and no vae/config.json"),
        ("tiny", "training", "others", "a AutoencoderTiny is not supported"),
        ("vae", "training", "others", "takes images of 3 channels, these have 1"),
        ("mlp", "training", "wide", "images of the shape (1, 12, 12)"),
        ("mlp", "training", "shared", "--data and --trained-on share 2 samples"),
        ("mlp", "flat", "others", "are equal, so there is nothing to learn"),
    ],
)
def test_what_no_bound_is_made_of(files, autoencoder, source, training, others, message, capsys):
    if source == "tiny":
        blocks = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
        layers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        AutoencoderTiny(**blocks, **layers).save_pretrained(files / "tiny")
    if source == "vae":
        autoencoder(channels=3)
    assert main(words(files, source, training, others)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
