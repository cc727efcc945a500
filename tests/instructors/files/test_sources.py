"""Wrong models and wrong conditions: one sentence and exit code 2, and nothing of them runs."""

import json
import os
import pickle
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet1DModel
from safetensors.torch import save_file

from distill.__main__ import main as distill
from instil.base.errors import InstilError
from instructors.__main__ import main
from instructors.conditions.conditioning import Blending, Conditioning
from instructors.denoiser import class_labels
from instructors.load import load
from instructors.prepare import prepare


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def vae(tmp_path, unet):
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "m")


def lora(tmp_path, unet):
    save_file({"unet.down.0.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def text(tmp_path, unet):
    (tmp_path / "m.pkl").write_text("not a pickle")
    return tmp_path / "m.pkl"


def harmful(tmp_path, unet):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    return tmp_path / "m.pkl"


def cut(tmp_path, unet):
    file = lora(tmp_path, unet)
    file.write_bytes(file.read_bytes()[:-4])
    return file


def other_class(tmp_path, unet):
    UNet1DModel(block_out_channels=(8, 8, 16)).save_pretrained(tmp_path / "m" / "unet")


def silent(tmp_path, unet):
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    DDPMPipeline(unet(), scheduler).save_pretrained(tmp_path / "m")


def no_subfolder(tmp_path, unet):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "unet")


def offline(tmp_path, unet):
    return "somebody/else"


def inpainting(tmp_path, unet):
    DDPMPipeline(unet(channels=1, out=4), DDPMScheduler()).save_pretrained(tmp_path / "m")


def remote_code(tmp_path, unet):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "m")
    config = tmp_path / "m" / "unet" / "config.json"
    content = json.loads(config.read_text()) | {"_class_name": ["mine", "Mine"]}
    config.write_text(json.dumps(content))
    (tmp_path / "m" / "mine.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')")


BAD = [
    (vae, "a AutoencoderKL is not supported (an autoencoder alone is no instructor)"),
    (lora, "this is a LoRA: fuse it with fuse_lora() of diffusers"),
    (text, "a pickle can run any code when it is opened, so it is not opened"),
    (harmful, "a pickle can run any code when it is opened, so it is not opened"),
    (cut, "not a whole safetensors file"),
    (other_class, "a UNet1DModel is not supported; supported: UNet2DModel, "),
    (silent, "epsilon says nothing about the data; expected v_prediction or sample"),
    (no_subfolder, "holds no unet/config.json, no transformer/config.json"),
    (offline, "not downloaded from the hub"),
    (inpainting, "1 channels in and 4 out; expected as many"),
    (remote_code, "asks for code of its own (['mine', 'Mine']), which is not executed"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_wrong_sources(make, message, unet, tmp_path, capsys):
    source = make(tmp_path, unet) or tmp_path / "m"
    assert main(["inspect", str(source), "--json", str(tmp_path / "facts.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "facts.json").exists()


WRONG = {
    "labels of an unconditional net": (
        "unconditional",
        ["conditioning.labels=[1, 2]"],
        "conditioning.labels: this instructor is unconditional; leave it out",
    ),
    "shares of other classes": (
        "labels",
        ["conditioning.labels=[1, 2]"],
        "expected 5 shares, not all zero, got 2",
    ),
    "null label": ("labels", ["conditioning.null_label=2"], "not the last of the instructor's 5"),
    "guidance without null": (
        "labels",
        ["conditioning.guidance=2.0"],
        "has no null condition; leave guidance out",
    ),
    "fake guidance without null": ("labels", ["fake.guidance=2.0"], "has no null condition"),
    "prompts for labels": (
        "labels",
        ["conditioning.prompts=p.txt"],
        "this instructor is not conditioned on text",
    ),
    "no prompts": ("sd", [], "expected a file of prompts"),
    "missing prompts": ("sd", ["conditioning.prompts=nowhere.txt"], "nowhere.txt: cannot be read"),
    "empty prompts": ("sd", ["conditioning.prompts={tmp}/empty.txt"], "is empty"),
    "a negative prompt for labels": (
        "labels",
        ["conditioning.negative=blurry"],
        "conditioning.negative: this instructor is not conditioned on text",
    ),
    "a negative prompt without null": (
        "flux",
        ["side=4", "conditioning={{prompts: {tmp}/p.txt, negative: blurry}}"],
        "conditioning.negative: this instructor has no null condition; leave it out",
    ),
    "labels for text": (
        "sd",
        ["conditioning={{prompts: {tmp}/p.txt, labels: [1]}}"],
        "this instructor has prompts, no labels",
    ),
    "blend of other shapes": (
        "labels",
        ["blend={{others: [digits], weights: [[1, 1]]}}"],
        "blend: instructors differ in shape",
    ),
    "blend of too few weights": (
        "labels",
        ["blend={{others: [digits], weights: [[1.0]]}}"],
        "blend",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_conditions(case, tiny_pipeline, tmp_path, capsys):
    kind, words, message = WRONG[case]
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "p.txt").write_text("a fox\n")
    folder = tiny_pipeline(kind)
    capsys.readouterr()
    words = [word.format(tmp=tmp_path) for word in words]
    base = ["digits", f"instructor={folder}", f"output={tmp_path / 'runs'}", "student.sigma=2.5"]
    assert distill([*base, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("sign", ["scheduler", "folder", "name", "tag"])
def test_a_distilled_model_is_no_instructor_unless_allowed(sign, tiny_pipeline, tmp_path, capsys):
    folder = tiny_pipeline("labels")
    file = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(file.read_text())
    if sign == "scheduler":
        file.write_text(json.dumps(scheduler | {"_class_name": "LCMScheduler"}))
    elif sign == "folder":
        folder = folder.rename(tmp_path / "models--org--sd-turbo")
    elif sign == "name":
        file.write_text(json.dumps(scheduler | {"_name_or_path": "org/sdxl_turbo"}))
    else:
        (folder / "README.md").write_text("---\ntags:\n- few-step-generator\n---\n")
    assert main(["inspect", str(folder), "--json", str(tmp_path / "facts.json")]) == 0
    assert "it seems so: its " in json.loads((tmp_path / "facts.json").read_text())["distilled"]
    words = ["digits", f"instructor={folder}", "--dry-run"]
    capsys.readouterr()
    assert distill(words) == 2
    error = capsys.readouterr().err
    assert f"{folder}: looks like a distilled model (its " in error
    assert "allow_distilled=true" in error
    assert distill([*words, "allow_distilled=true"]) == 0


def test_ordinary_models_show_no_sign_of_distillation(tiny_pipeline, tmp_path):
    folder = tiny_pipeline("labels")
    assert main(["inspect", str(folder), "--json", str(tmp_path / "facts.json")]) == 0
    assert json.loads((tmp_path / "facts.json").read_text())["distilled"] == "no sign of it"
    lcm = shutil.copytree(folder, tmp_path / "instructor-lcm")
    blend = Blending(others=(str(lcm),), weights=((1.0, 1.0),))
    with pytest.raises(InstilError, match="instructor-lcm: looks like a distilled model"):
        prepare(str(folder), Conditioning(), blend, allow_distilled=False)


def test_a_bare_latent_network_cannot_be_seen(tiny_pipeline, tmp_path, capsys):
    folder = tiny_pipeline("dit")
    shutil.rmtree(folder / "vae")
    assert main(["inspect", str(folder)]) == 0
    words = ["digits", f"instructor={folder}", f"output={tmp_path / 'runs'}"]
    assert distill(words) == 2
    assert "there is no vae/ beside the network" in capsys.readouterr().err


def test_the_last_label_may_be_the_null_condition(tiny_pipeline, tmp_path, capsys):
    folder = tiny_pipeline("labels")
    words = ["conditioning={null_label: 4, guidance: 2.0, labels: [1, 1, 1, 5]}"]
    base = ["digits", f"instructor={folder}", "--dry-run", "--json", str(tmp_path / "plan.json")]
    assert distill([*base, *words]) == 0
    assert "4 classes" in json.loads((tmp_path / "plan.json").read_text())["samples"]


def test_instructors_of_other_spaces_are_not_blended(tiny_pipeline, tmp_path):
    """Images in [0, 1] beside those in [-1, 1]; latents of another scale beside the same ones."""
    latent, same, other = tiny_pipeline("dit"), tmp_path / "same", tmp_path / "other"
    shutil.copytree(latent, same)
    shutil.copytree(latent, other)
    config = other / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))

    def blended(one, two):
        blending = Blending(others=(str(two),), weights=((0.5, 0.5),))
        return prepare(str(one), Conditioning(), blending).denoiser

    assert blended(latent, same).evaluations == 2
    for one, two in ((latent, other), (tiny_pipeline("unconditional"), tiny_pipeline("ncsnpp"))):
        with pytest.raises(InstilError, match=f"samples of {two} are made into images by another"):
            blended(one, two)


def test_a_null_label_is_that_of_every_instructor(tiny_pipeline):
    folder = str(tiny_pipeline("labels"))
    blending = Blending(others=(folder,), weights=((0.5, 0.5),))
    found = prepare(folder, Conditioning(null_label=4, guidance=2.0), blending).denoiser
    assert (found.classes, found.evaluations) == (4, 4)
    one = prepare(folder, Conditioning(null_label=4, guidance=2.0)).denoiser
    arguments = torch.randn(3, 3, 8, 8), torch.ones(3), class_labels(4, torch.arange(3))
    with torch.no_grad():  # half of each of two that are the same
        torch.testing.assert_close(found(*arguments), one(*arguments))


def test_the_hash_covers_what_samples_depend_on():
    asked = [(Conditioning(), None), (Conditioning(), 16), (Conditioning(labels=(1.0,) * 10), 16)]
    found = [prepare("digits", conditioning, side=side).card.sha256 for conditioning, side in asked]
    assert len(set(found)) == 3
    assert found[0] == load("digits").card.sha256
