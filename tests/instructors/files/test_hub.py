"""The layouts in which models are published: what is downloaded, read, and refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from distill.recipe import RECIPES, Recipe
from instil.base.config import load_recipe
from instil.base.errors import InstilError
from instructors.__main__ import main
from instructors.conditions.prompts import encode
from instructors.families import FAMILIES
from instructors.files.source import Source
from instructors.files.sources import network_folder
from instructors.files.weights import weights_hash
from instructors.load import load
from students.export import export, rehearse
from students.one_step import OneStep
from tests.tools.hub import WEIGHTS, Hub

LAYOUTS = {
    "plain": {},
    "fp16": {"variant": "fp16"},
    "bf16": {"variant": "bf16"},
    "bin": {"safe_serialization": False},
    "fp16 bin": {"variant": "fp16", "safe_serialization": False},
    "shards": {"max_shard_size": "20KB"},
    "fp16 shards": {"variant": "fp16", "max_shard_size": "20KB"},
    "bin shards": {"safe_serialization": False, "max_shard_size": "20KB"},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return Hub(tmp_path, monkeypatch)


def written(unet, folder: Path, **options) -> Path:
    """A pipeline in one of the layouts, always of the same weights."""
    torch.manual_seed(0)
    network = unet(channels=3)
    DDPMPipeline(network, DDPMScheduler()).save_config(folder)
    network.save_pretrained(folder / "unet", **options)
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


def emptied(folder: Path) -> None:
    """Leave nothing in the files of weights."""
    for path in folder.rglob("*.*"):
        if path.suffix in WEIGHTS:
            path.write_bytes(b"")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_and_inspected_without_weights(layout, hub, unet, tmp_path, capsys):
    folder = written(unet, tmp_path / "made", **LAYOUTS[layout])
    torch.manual_seed(0)
    truth = unet(channels=3)
    name = hub.add(folder, "model")
    found = load(name).denoiser.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in truth.state_dict().items())
    assert hub.weights
    hub.served.clear()
    emptied(folder)
    emptied(hub.root)
    for source in (str(folder), name):
        assert main(["inspect", source]) == 0
    assert "UNet2DModel" in capsys.readouterr().out
    assert not hub.weights


def test_a_single_format_is_downloaded_and_hashed(hub, unet, tmp_path):
    """The plain one before a variant and a .bin; the hash is of what was read."""
    folder = written(unet, tmp_path / "made")
    before = load(str(folder)).card.sha256
    unet(channels=3).half().save_pretrained(folder / "unet", variant="fp16")
    written(unet, folder, safe_serialization=False)
    shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", folder / "v1-5.safetensors")
    assert load(str(folder)).card.sha256 == before
    name = hub.add(folder, "model")
    assert load(name).card.sha256 == before == weights_hash(network_folder(name))
    assert hub.weights == {"unet/diffusion_pytorch_model.safetensors"}
    assert load(f"{name}?variant=fp16").card.sha256 != before
    with pytest.raises(InstilError, match="holds no weights of the variant bf16"):
        load(f"{name}?variant=bf16")


def test_a_revision_and_a_subfolder(hub, unet, tmp_path):
    folder = written(unet, tmp_path / "made")
    name = hub.add(folder, "model/inside")
    truth = load(str(folder))
    found = load("me/model@v1.0?subfolder=inside")
    assert found.card.sha256 == truth.card.sha256
    assert set(hub.revisions) == {"v1.0"}
    assert name == "me/model/inside"
    assert load(f"{tmp_path}?subfolder=made").card.sha256 == truth.card.sha256
    with pytest.raises(InstilError, match="there is no folder nowhere"):
        load("me/model?subfolder=nowhere")


@pytest.mark.parametrize(
    "text",
    ["a/b", "a/b@main", "a/b?variant=fp16", "a/b@c0?variant=fp16&subfolder=x/y", "digits"],
)
def test_the_shorthand_of_a_source_reads_back(text):
    assert str(Source.parse(text)) == text


def test_a_recipe_names_a_source_by_a_mapping():
    options = {"source": "a/b", "revision": "v1", "variant": "fp16"}
    recipe = load_recipe(Recipe, "digits", [f"instructor={json.dumps(options)}"], RECIPES)
    assert recipe.instructor == "a/b@v1?variant=fp16"
    words = ["instructor=a/b", "instructor.revision=v1"]
    assert load_recipe(Recipe, "digits", words, RECIPES).instructor == "a/b@v1"
    with pytest.raises(InstilError, match="branch: unknown key"):
        load_recipe(Recipe, "digits", ["instructor={source: a/b, branch: v1}"], RECIPES)


def test_a_harmful_bin_is_not_run(unet, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    folder = written(unet, tmp_path / "made", safe_serialization=False)
    file = folder / "unet/diffusion_pytorch_model.bin"
    for content in (pickle.dumps({"conv_in.weight": Harm()}), None):
        if content is None:
            torch.save({"conv_in.weight": Harm()}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(InstilError, match="weights cannot be loaded"):
            load(str(folder))
    assert not (tmp_path / "harm").exists()


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantised(folder):
    edit(folder / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"})


def inpainting(folder):
    edit(folder / "unet/config.json", in_channels=9)


def refiner(folder):
    edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")


def own_code(folder):
    edit(folder / "model_index.json", _class_name=["pipeline", "Mine"])


def own_part(folder):
    edit(folder / "model_index.json", unet=["mine", "Mine"])
    (folder / "mine.py").write_text("raise SystemExit")


def foreign(folder):
    edit(folder / "unet/config.json", _class_name="QwenImageTransformer2DModel")


def few_steps(folder):
    edit(folder / "unet/config.json", time_cond_proj_dim=256)


def lora(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (folder / "README.md").write_text("---\ntags: [lora]\n---\n")


REFUSED = {
    quantised: "weights quantised by bitsandbytes, which cannot be trained; name the repository",
    inpainting: "9 channels in and 4 out",
    refiner: "a StableDiffusionXLImg2ImgPipeline is not supported; supported around a UNet2DCond",
    own_code: "asks for code of its own (['pipeline', 'Mine'])",
    own_part: "asks for code of its own (mine)",
    foreign: "a QwenImageTransformer2DModel is not supported; supported: ",
    few_steps: "time_cond_proj_dim=256",
    lora: "this is a LoRA: fuse it with fuse_lora()",
}


@pytest.mark.parametrize("change", REFUSED)
def test_refusals_come_before_weights(change, hub, tiny_pipeline, capsys):
    folder = tiny_pipeline("sd")
    change(folder)
    emptied(folder)
    name = hub.add(folder, "model")
    capsys.readouterr()
    for source in (name, str(folder)):
        assert main(["inspect", source]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {source}: ")
        assert REFUSED[change] in error
        with pytest.raises(InstilError):
            load(source)
    assert not hub.weights


def test_the_remedy_for_a_lora_works(tiny_pipeline, tmp_path):
    """Fused as the sentence says, it is read."""
    pytest.importorskip("peft")
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder = tiny_pipeline("sd")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    with pytest.raises(InstilError, match="this is a LoRA"):
        load(str(tmp_path / "lora"))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path / "lora")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    assert load(str(tmp_path / "fused")).card.sha256 != load(str(folder)).card.sha256


def test_encoders_come_in_one_format(hub, tiny_pipeline):
    """Of the five formats beside each other, as in SDXL's repository, the first one."""
    folder = tiny_pipeline("sdxl")
    for part in ("text_encoder", "text_encoder_2"):
        for other in ("model.fp16.safetensors", "flax_model.msgpack", "model.onnx"):
            (folder / part / other).write_bytes(b"no weights")
        (folder / part / "openvino_model.bin").write_bytes(b"no weights")
    instructor = load(hub.add(folder, "model"))
    assert hub.weights == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    hub.served.clear()
    found = encode(instructor.card, ["a fox"], "")[0]
    assert hub.weights == {"text_encoder/model.safetensors", "text_encoder_2/model.safetensors"}
    truth = encode(load(str(folder)).card, ["a fox"], "")[0]
    assert all(torch.equal(found[key], truth[key]) for key in truth)


def test_a_student_of_a_hub_id_needs_no_safety_checker(hub, tiny_pipeline, tmp_path):
    """As Stable Diffusion 1.5 is published: named by the pipeline, and not downloaded."""
    folder = tiny_pipeline("sd")
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    extractor = ["transformers", "CLIPImageProcessor"]
    edit(folder / "model_index.json", safety_checker=checker, feature_extractor=extractor)
    instructor = load(hub.add(folder, "model"))
    encode(instructor.card, ["a fox"], "")
    student = OneStep(instructor.denoiser, 2.5)
    rehearse(student, instructor.card.folder)
    facts = {"instructor": "me/model", "licence": "unknown", "recipe": "", "figures": {}}
    export(student, tmp_path / "student", facts, instructor.card.folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert pipeline.safety_checker is None
    assert "safety checker is left out" in (tmp_path / "student" / "README.md").read_text()
    for key, value in instructor.denoiser.network.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[key], value)


def test_the_documents_list_what_is_supported():
    text = (Path(__file__).parents[3] / "docs" / "instructors.md").read_text()
    for name, family in FAMILIES.items():
        assert f"`{name}`" in text, name
        for pipeline in family.encoders:
            assert f"`{pipeline}`" in text, pipeline
