"""The embedded instructors are what their cards say."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from eval.quality.evaluation import Evaluation
from eval.quality.evaluator import Evaluator
from eval.quality.images import instructor_sampler
from instil.base.config import load_recipe
from instructors.__main__ import main
from instructors.files.sources import ZOO, zoo
from instructors.load import load
from instructors.training import RECIPES
from instructors.training.train import TrainRecipe

REFERENCES = {
    "digits": ("digits", "digits:held-out"),
    "digits-0-4": ("digits:0-4", "digits:held-out:0-4"),
    "digits-5-9": ("digits:5-9", "digits:held-out:5-9"),
}
MNIST = {"mnist14": ("mnist14", "mnist14:held-out")}  # its images are not here


def test_every_instructor_is_listed_here():
    assert set(zoo()) == set(REFERENCES | MNIST)


@pytest.mark.parametrize("name", REFERENCES | MNIST)
def test_size_and_card(name):
    folder = ZOO / name
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 3 * 2**20
    card = (folder / "README.md").read_text()
    command = re.search(r"Command: `python -m instructors train ([^\s`]+)[^`]*`", card)[1]
    recipe = load_recipe(TrainRecipe, command, [], RECIPES)
    data, seed, steps = recipe.data, recipe.seed, recipe.steps
    assert data == (REFERENCES | MNIST)[name][0]
    assert f"Data: `{data}`" in card
    assert f"Seed {seed}; {steps} updates of {recipe.batch} images in" in card
    assert re.search(r"date 20\d\d-\d\d-\d\d", card)


@pytest.mark.parametrize("name", REFERENCES | MNIST)
def test_inspect_says_what_is_in_the_folder(name, tmp_path):
    unet = ZOO / name / "unet"
    tensors = load_file(unet / "diffusion_pytorch_model.safetensors")
    config = json.loads((unet / "config.json").read_text())
    levels = json.loads((ZOO / name / "scheduler" / "scheduler_config.json").read_text())
    side = config["sample_size"]
    assert main(["inspect", name, "--json", str(tmp_path / "facts.json")]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts == {
        "source": name,
        "network": "UNet2DModel",
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "adapter": "Karras",
        "prediction": "EDM's F",
        "learned_variance": False,
        "shape": [1, side, side],
        "image_shape": [1, side, side],
        "sigma_min": levels["sigma_min"],
        "sigma_max": levels["sigma_max"],
        "sampled": [levels["sigma_min"], levels["sigma_max"]],
        "classes": len(tensors["class_embedding.weight"]),
        "conditions": ["label"],
        "null_condition": "none",
        "codec": "none",
        "distilled": "no sign of it",
        "licence": "apache-2.0",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_the_card_is_held_to_its_word(name):
    reference, held_out = REFERENCES[name]
    figures = next(iter(json.loads((ZOO / name / "figures.json").read_text()).values()))["figures"]
    evaluation = Evaluation(
        extractor="digits", reference=reference, held_out=held_out, samples=1200, seeds=3
    )
    evaluator = Evaluator(evaluation, load(name), torch.device("cpu"))
    found = evaluator.score(instructor_sampler(load(name).denoiser, 18))
    floor = evaluator.floor()["floor"]
    assert figures["fd_matched"]["mean"] < 1.5 * floor
    assert found["fd_matched"]["mean"] < 1.5 * floor
    for key in ("fd_matched", "precision", "recall", "label_accuracy", "class_tv"):
        one, two = found[key], figures[key]
        tolerance = 4 * (one["std"] + two["std"]) + 0.02
        assert one["mean"] == pytest.approx(two["mean"], abs=tolerance), key
    assert found["copies"]["mean"] < 0.01
    card = (ZOO / name / "README.md").read_text()
    assert f"| fd | 10000 | {figures['fd']['mean']:.4f}" in card
