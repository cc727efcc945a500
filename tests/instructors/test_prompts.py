"""Prompts: encoded once, by the pipeline's own encoders; text models through a whole run."""

import json
import re
from pathlib import Path
from string import ascii_lowercase

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from distill.__main__ import RECIPES
from distill.__main__ import main as distill
from eval.__main__ import main as evaluate
from eval.quality import features
from eval.quality.clip import Clip
from eval.quality.evaluation import Evaluation
from eval.quality.evaluator import Evaluator
from instil.base import data
from instil.base.checkpoint import write_tensors
from instil.base.config.recipes import named_recipes
from instil.base.errors import InstilError
from instructors.conditions.conditioning import Conditioning
from instructors.conditions.prompt_files import read_prompts
from instructors.conditions.prompts import encode
from instructors.load import load
from instructors.prepare import prepare

PROMPTS = ["a fox", "two owls", "the sea"]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["a fox", "", "  two owls ", "the sea", ""]))
    return file


@pytest.fixture
def tiny_clip(tmp_path):
    """A random CLIP model with its processor, saved."""
    pytest.importorskip("transformers")
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase]
    words += [f"{letter}</w>" for letter in ascii_lowercase]
    layers = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config=layers | text | {"pad_token_id": 1},
        vision_config=layers | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=16
    )
    image = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    CLIPProcessor(image, tokenizer).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_blank_lines_are_no_prompts(prompts):
    assert read_prompts(str(prompts)) == tuple(PROMPTS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "\ufeffa fox\n\ntwo owls\n the sea \n"),
        ("p.csv", '\ufeffid,caption\r\n1,a fox\r\n2,"two owls"\r\n3,\r\n4,the sea\r\n'),
        ("p.jsonl", '\ufeff{"text": "a fox"}\n\n{"text": "two owls"}\n"the sea"\n'),
        ("p.json", '["a fox", "", "two owls", "the sea"]'),
        ("p.json", '[{"prompt": "a fox"}, {"prompt": "two owls"}, {"prompt": "the sea"}]'),
        ("p.csv::said", "prompt,said\nx,a fox\ny,two owls\nz,the sea\n"),
    ],
)
def test_prompts_of_common_files(tmp_path, name, text):
    (tmp_path / name.partition("::")[0]).write_bytes(text.encode())
    assert read_prompts(str(tmp_path / name)) == tuple(PROMPTS)


def test_prompts_of_parquet_need_pyarrow(tmp_path):
    file = tmp_path / "p.parquet"
    try:
        from pyarrow import parquet, table
    except ImportError:
        file.write_bytes(b"")
        with pytest.raises(InstilError, match="pip install pyarrow"):
            read_prompts(str(file))
    else:
        parquet.write_table(table({"text": PROMPTS}), file)
        assert read_prompts(str(file)) == tuple(PROMPTS)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "id,words\n1,a fox\n", "no column prompt or text or caption, only id, words"),
        ("p.csv::prose", "id,words\n1,a fox\n", "no column prose"),
        ("p.jsonl", "a fox\n", "not a .jsonl file"),
        ("p.jsonl", '{"prompt": 3}\n', "row 1: expected text, got 3"),
        ("p.json", '{"prompt": "a fox"}', "expected a JSON list"),
        ("p.yaml", "- a fox\n", "got .yaml"),
        ("p.txt::prompt", "a fox\n", "got .txt"),
        ("p.txt", "\ufeff\n \n", "is empty"),
    ],
)
def test_other_files_of_prompts_are_refused(tmp_path, name, text, said):
    (tmp_path / name.partition("::")[0]).write_text(text)
    with pytest.raises(InstilError, match=re.escape(said)):
        read_prompts(str(tmp_path / name))


def test_prompts_are_encoded_once_as_diffusers_does(tiny_pipeline, monkeypatch):
    folder = tiny_pipeline("sd")
    card = load(str(folder)).card
    table, null = encode(card, PROMPTS, "")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs, empty = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(table["text"], theirs)
    torch.testing.assert_close(null["text"], empty[:1])
    assert null["text"].shape == (1, *table["text"].shape[1:])

    def never(*a, **k):
        raise AssertionError("the encoders were loaded again")

    real = diffusers.StableDiffusionPipeline.from_pretrained
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", never)
    again, _ = encode(card, PROMPTS, "")
    assert torch.equal(again["text"], table["text"])
    with pytest.raises(InstilError, match="loaded again"):  # other prompts are another file
        encode(card, PROMPTS[:2], "")
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", real)
    _, negative = encode(card, PROMPTS, "the sea")
    torch.testing.assert_close(negative["text"], table["text"][2:])


def test_encoders_are_not_kept(tiny_pipeline, prompts):
    instructor = prepare(str(tiny_pipeline("sd")), Conditioning(prompts=str(prompts)))
    kinds = {type(m).__name__ for m in instructor.denoiser.modules()}
    assert "UNet2DConditionModel" in kinds
    assert not any("CLIPText" in kind for kind in kinds)
    assert instructor.prior.prompts == tuple(PROMPTS)


def test_missing_encoders_are_one_sentence(tiny_pipeline, prompts, tmp_path, capsys):
    folder = tiny_pipeline("sd")
    (folder / "text_encoder" / "model.safetensors").unlink()
    words = [f"instructor={folder}", f"conditioning.prompts={prompts}", f"output={tmp_path}"]
    capsys.readouterr()
    assert distill(["sd15", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {folder}: text encoders cannot be loaded")


def test_clip_score_is_the_cosine_of_the_embeddings(tiny_clip):
    clip = Clip(str(tiny_clip))
    pixels = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    found = clip(pixels, PROMPTS, batch=2)
    inputs = clip.processor(text=PROMPTS, images=list(pixels), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = clip.model(**inputs)
        cosine = output.logits_per_image.diagonal() / clip.model.logit_scale.exp()
    torch.testing.assert_close(found, 100 * cosine.clamp(min=0))
    grey = pixels[:, :1]
    torch.testing.assert_close(clip(grey, PROMPTS), clip(grey.repeat(1, 3, 1, 1), PROMPTS))


def test_clip_on_the_command_line(tiny_clip, prompts, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    words = ["clip", "--images", str(tmp_path / "images.npz"), "--prompts", str(prompts)]
    facts = tmp_path / "facts.json"
    assert evaluate([*words, "--model", str(tiny_clip), "--json", str(facts)]) == 0
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = Clip(str(tiny_clip))(pixels, PROMPTS).mean().item()
    assert json.loads(facts.read_text())["clip"] == pytest.approx(expected)
    prompts.write_text("one line")
    assert evaluate([*words, "--model", str(tiny_clip)]) == 2
    assert "expected a prompt per image, got 1 for 3 images" in capsys.readouterr().err
    prompts.write_text("\n".join(PROMPTS))
    assert evaluate([*words, "--model", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: cannot be loaded" in capsys.readouterr().err


STAND_INS = {
    "cifar10-ddpm": "unconditional",
    "sd15": "sd",
    "sdxl": "sdxl",
    "sd3": "sd3",
}


STAND_IN_CASES = [
    pytest.param(name, marks=() if name == "sd3" else pytest.mark.slow) for name in STAND_INS
]


@pytest.mark.parametrize("recipe", STAND_IN_CASES)
def test_recipes_fit_their_families(recipe, tiny_pipeline, prompts, tmp_path):
    text = named_recipes(RECIPES)[recipe].read_text()
    assert text.splitlines()[0] == "# not yet run by us"
    kind = STAND_INS[recipe]
    words = [recipe, f"instructor={tiny_pipeline(kind)}", "--dry-run"]
    if kind != "unconditional":
        words.append(f"conditioning.prompts={prompts}")
    assert distill([*words, "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    evaluations = {"cifar10-ddpm": 9, "sd15": 14, "sdxl": 20, "sd3": 11}[recipe]
    assert f"{evaluations} forward-equivalents" in plan["per update"]


DOCUMENTED = {
    "pixels": "unconditional",
    "EDM": "digits",
    "EDM2": "digits",
    "NCSN++": "ncsnpp",
    "DiT": "dit",
    "SD 1.5": "sd",
    "SDXL": "sdxl",
    "PixArt": "pixart",
    "SD 3": "sd3",
    "Sana": "sana",
    "Flux": "flux",
}


def documented():
    page = Path(__file__).parents[2] / "docs" / "instructors.md"
    return dict(
        re.findall(
            r"^\| ([\w+ .]+) \| .* \| `accelerate launch -m distill (.*)` \|$",
            page.read_text(),
            re.MULTILINE,
        )
    )


def test_every_family_is_documented_by_a_sound_command(prompts, tmp_path, monkeypatch):
    assert set(documented()) == set(DOCUMENTED)
    monkeypatch.chdir(tmp_path)  # that of prompts.txt
    for words in documented().values():
        assert distill([*words.split(), "--check"]) == 0, words


@pytest.mark.slow
@pytest.mark.parametrize("family", DOCUMENTED)
def test_documented_commands_fit_their_families(family, tiny_pipeline, prompts, capsys):
    kind, words = DOCUMENTED[family], documented()[family].split()
    source = kind if kind == "digits" else tiny_pipeline(kind)
    words += [f"instructor={source}", "--dry-run"]
    if "conditioning.prompts=prompts.txt" in words:
        words.append(f"conditioning.prompts={prompts}")
    assert distill([*words, "side=4"] if kind == "flux" else words) == 0, capsys.readouterr().err


def test_a_text_model_through_a_whole_run(tiny_pipeline, tiny_clip, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("distill.watch.pictures.ROWS", 1)
    folder = tiny_pipeline("sd")
    words = [
        "sd15",
        f"instructor={folder}",
        f"conditioning.prompts={prompts}",
        f"output={tmp_path / 'runs'}",
        "train={steps: 2, batch: 4, accumulation: 2, averages: [0]}",
        f"evaluation={{clip: {tiny_clip}, instructor_steps: 2, quick_samples: 6, batch: 40}}",
    ]
    assert distill(words) == 0
    run = tmp_path / "runs" / "sd15"
    report = json.loads((run / "report.json").read_text())
    assert report["instructor"]["nfe"] == 6  # three evaluations of two networks
    for who in ("instructor", "student"):
        assert 0 <= report[who]["clip"] <= 100
    # Two halves of six images, 32 pixels wide and one apart; four pixels between the halves.
    assert Image.open(run / "samples" / "final.png").width == 2 * (6 * 33 - 1) + 4
    pipeline = diffusers.DiffusionPipeline.from_pretrained(run / "student")
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32}
    assert pipeline("a fox", **call).images[0].size == (32, 32)


def test_a_text_model_is_evaluated(tiny_pipeline, prompts, tmp_path, capsys):
    colour = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", images=colour, labels=np.arange(40) % 2)
    images = data.load(str(tmp_path / "c.npz"))
    network = features.SmallCNN(images.shape, 2)
    about = {"shape": list(images.shape), "classes": 2}
    metadata = {"extractor": json.dumps(about)}
    write_tensors(tmp_path / "e.safetensors", network.state_dict(), metadata)
    reference, extractor = str(tmp_path / "c.npz"), str(tmp_path / "e.safetensors")
    folder = str(tiny_pipeline("sd"))
    evaluation = Evaluation(
        extractor=extractor,
        reference=reference,
        samples=8,
        seeds=1,
        quick_samples=4,
        instructor_steps=2,
    )
    instructor = prepare(folder, Conditioning(prompts=str(prompts), guidance=2.0))
    figures = Evaluator(evaluation, instructor, torch.device("cpu")).instructor_figures()
    assert figures["fd"]["mean"] > 0
    words = ["--instructor", folder, "--reference", reference, "--extractor", extractor]
    capsys.readouterr()
    assert evaluate(["fid", *words]) == 2
    assert "expected a file of prompts" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_codecs_are_those_of_the_pipelines(name):
    from instructors.codec import Autoencoder

    if name == "AutoencoderKL":
        network = diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=1.5,
            shift_factor=0.1,
        )
        shift = 0.1
    else:
        network = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            scaling_factor=1.5,
        )
        shift = 0.0
    codec, images = Autoencoder(network.eval()), torch.rand(2, 3, 8, 8) * 2 - 1
    shape = codec.encode(images).shape[1:]
    assert codec.image_shape(tuple(shape)) == (3, 8, 8)
    with torch.no_grad():
        samples = codec.encode(images)
        latents = samples / 1.5 + shift  # what every pipeline does before it decodes
        expected = network.decode(latents, return_dict=False)[0]
        encoded = network.encode(images)
        found = encoded.latent_dist.mode() if name == "AutoencoderKL" else encoded.latents
    torch.testing.assert_close(codec.decode(samples), expected)
    torch.testing.assert_close(latents, found)
