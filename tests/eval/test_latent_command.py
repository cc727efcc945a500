"""`python -m eval latents`: what it finds where the answer is known, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from eval.__main__ import main
from eval.latents.autoencoders import Autoencoder
from eval.latents.domains import Domains
from eval.latents.report import autoencoder_report
from instil.base import data
from instil.base.draws import Draws

DOCUMENT = Path(__file__).parents[2] / "docs" / "eval" / "latents.md"


def planes(count, seed, tilt, features=16, k=3, noise=0.05):
    """Images (N, 4, 4) near a linear subspace, tilted against the first one by an angle each."""
    draws = Draws.of_range(seed, 0, 0, count)
    unit, angles = torch.eye(features), torch.tensor(tilt)
    basis = unit[:, :k] * angles.cos() + unit[:, k : 2 * k] * angles.sin()
    x = 0.25 * draws.normal("signal", (k,)) @ basis.mT
    return data.to_uint8(x + noise * draws.normal("noise", (features,))).view(-1, 4, 4)


@pytest.fixture
def files(tmp_path):
    """Image files: a source, an aligned and a tilted target, few images, broken ones."""
    made = {
        "source": planes(600, 0, [0.0, 0.0, 0.0]),
        "aligned": planes(300, 1, [0.0, 0.0, 0.0]),
        "tilted": planes(900, 2, [0.9, 1.2, 1.4]),
        "few": planes(12, 3, [0.9, 1.2, 1.4]),
        "wide": torch.randint(0, 256, (50, 5, 5), dtype=torch.uint8),
        "three": planes(3, 4, [0.0, 0.0, 0.0]),
        "flat": torch.full((40, 4, 4), 7, dtype=torch.uint8),
    }
    made["shared"] = torch.cat([made["source"][:5], made["aligned"]])
    for name, pixels in made.items():
        np.savez(tmp_path / f"{name}.npz", images=pixels.numpy())
    return {name: str(tmp_path / f"{name}.npz") for name in made} | {"folder": tmp_path}


def run(files, target, *more, source="source"):
    out = files["folder"] / "r.json"
    command = ["latents", "--source", files[source], "--target", files[target], "--sigma", "0.1"]
    assert main([*command, "--json", str(out), *more]) == 0
    return json.loads(out.read_text())


def test_a_space_that_fits_is_reused(files, capsys):
    facts = run(files, "aligned", "--dim", "3", "--plot", str(files["folder"] / "p.png"))
    assert facts["verdict"]["choice"] == "reuse"
    assert max(facts["angles"]["degrees"]) < 4
    assert capsys.readouterr().out.startswith("reuse: from sigma 0.1 up its 3 dimensions cost")
    assert Image.open(files["folder"] / "p.png").size[0] > 600


def test_a_tilted_space_is_not(files):
    facts = run(files, "tilted", "--dim", "3")
    assert facts["verdict"]["choice"] == "relearn"
    assert facts["verdict"]["excess"]["reuse"]["nats"] > 1
    # the angles that were built in, within four jackknife errors
    angles, errors = (np.array(facts["angles"][key]) for key in ("degrees", "stderr"))
    assert (np.abs(angles - np.rad2deg([0.9, 1.2, 1.4])) < 4 * errors + 0.5).all()
    arms = facts["prices"]["arms"]
    assert set(arms) == {"reuse", "mix", "relearn", "source model unchanged"}
    assert all(len(arm["stderr"]) == len(facts["prices"]["sigmas"]) for arm in arms.values())
    assert arms["reuse"]["nats"][8] == pytest.approx(
        facts["verdict"]["excess"]["reuse"]["nats"] + arms["relearn"]["nats"][8]
    )
    assert facts["relearning_wins_from_images"] < 100


def test_both_need_the_sum_of_their_spaces(files):
    assert run(files, "tilted", "--nats", "0.3")["shared_dimension"]["dim"] == 6
    assert run(files, "aligned", "--nats", "0.3")["dim"] == 3


def test_few_images_cannot_relearn(files, capsys):
    facts = run(files, "few", "--dim", "10")
    assert "relearn" not in facts["prices"]["arms"]
    assert facts["angles"]["degrees"] == []
    assert "too few for 10 directions" in capsys.readouterr().err


def test_an_autoencoder_that_ruins_images_is_not_reused(files, tmp_path):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    model = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        **blocks,
    )
    model.save_pretrained(tmp_path / "tiny")
    facts = run(files, "tilted", "--autoencoder", str(tmp_path / "tiny"))
    assert facts["dim"] == 16
    lost, bound = facts["reconstruction"]["target"], facts["prices"]["bound"]
    assert bound["nats"][8] == pytest.approx(lost["mean"] / (2 * 0.1**2))
    reuse = facts["prices"]["arms"]["reuse"]["nats"]
    assert 0 < reuse[8] < bound["nats"][8]
    tolerance = facts["reconstruction"]["reuse_sigma"]["tolerance"]
    assert tolerance == pytest.approx((lost["mean"] / 2) ** 0.5)
    assert 0 < facts["angles"]["outside"] < 1
    # 16 values in 16 latents: principal directions would lose nothing, but they are the whole space
    assert set(facts["prices"]["arms"]) == {"reuse"}


def test_bounds_that_contradict_the_price_are_named(files):
    """An autoencoder that gives a wrong image of the right law: no price, but a bound."""
    domains = Domains.of(data.load(files["source"]), data.load(files["tilted"]), 0)
    bank = data.to_float(planes(900, 7, [0.9, 1.2, 1.4])).flatten(1)

    def decode(latent):  # looks images up by two of their pixels, not those encoded
        near = -1e3 * (latent[:, None] - bank[:, 14:]).square().sum(2)
        return (near.softmax(1) @ bank).view(-1, 1, 4, 4)

    swapped = Autoencoder(lambda x: x.flatten(1)[:, :2], decode)
    facts = autoencoder_report(domains, swapped, "swapped", 0.1, 1.0, torch.device("cpu"))
    assert facts["verdict"]["cheapest"] == "reuse"
    assert facts["verdict"]["least_bound"] == "relearn"
    assert "rank them the other way round" in facts["verdict"]["sentence"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--source": "nowhere.zip"}, "nowhere.zip: no such file or folder"),
        ({"--target": "digits:5-x"}, "'5-x' is no class"),
        ({"--target": "wide"}, r"source.npz has images of the shape (1, 4, 4), "),
        ({"--target": "shared"}, "share 5 samples, so no comparison would hold; take disjoint"),
        ({"--target": "three"}, "3 different images; expected 6 or more"),
        ({"--target": "flat"}, "1 different images; expected 6 or more"),
        ({"--dim": "0"}, "--dim: input should be greater than 0, got 0"),
        ({"--dim": "16"}, "--dim 16: expected 1 to 15, since an image has 16 values"),
        (
            {"--dim": "12", "--source": "few"},
            "dimension 12: 12 samples of 16 features allow at most 11",
        ),
        ({"--nats": "-1"}, "--nats: input should be greater than 0, got -1"),
        ({"--nats": "1e-9", "--sigma": "0.01"}, "--dim: not given, and no size up to 15 costs"),
        ({"--sigma": "nan"}, "--sigma: input should be a finite number"),
        ({"--autoencoder": "nowhere"}, "nowhere: holds no config.json and no vae/config.json"),
        ({"--plot": "curves.pdf"}, "--plot curves.pdf: expected a file ending in .png"),
        ({"--json": "nowhere/r.json"}, "--json nowhere/r.json: there is no folder nowhere"),
    ],
)
def test_wrong_inputs_are_one_sentence(files, change, message, capsys):
    options = {"--source": "source", "--target": "tilted"} | change
    words = [files.get(word, word) for pair in options.items() for word in pair]
    assert main(["latents", *words]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "repeated images left out" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_the_documented_python_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    picture = Image.open(tmp_path / "digits-in-latents.png")
    assert picture.size == (4 * (12 * 9 - 1), 4 * (4 * 9 - 1))
