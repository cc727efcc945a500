"""Every family of networks, from a saved pipeline to a student that plain diffusers samples."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from distill.build import full_copy
from distill.recipe import Method
from distill.trainer import State, train
from instructors.__main__ import main
from instructors.conditions.conditioning import Conditioning
from instructors.prepare import prepare
from students.export import export, rehearse
from students.one_step import OneStep

CARD = {"instructor": "x", "licence": "unknown", "recipe": "a: 1\n", "figures": {"NFE": "1"}}
PROMPTS = ["a fox", "two owls", "the sea"]
FAMILIES = {
    "unconditional": ("UNet2DModel", "DiscreteVP", (3, 8, 8), []),
    "labels": ("UNet2DModel", "DiscreteVP", (3, 8, 8), ["label"]),
    "learned variance": ("UNet2DModel", "DiscreteVP", (3, 8, 8), []),
    "latent": ("UNet2DModel", "DiscreteVP", (3, 8, 8), []),
    "dit": ("DiTTransformer2DModel", "DiscreteVP", (4, 4, 4), ["label"]),
    "sd": ("UNet2DConditionModel", "DiscreteVP", (4, 4, 4), ["text"]),
    "sdxl": ("UNet2DConditionModel", "DiscreteVP", (4, 4, 4), ["text", "pooled"]),
    "ncsnpp": ("UNet2DModel", "ScoreVE", (3, 8, 8), []),
    "pixart": ("PixArtTransformer2DModel", "DiscreteVP", (4, 4, 4), ["text", "mask"]),
    "pixart 1024": ("PixArtTransformer2DModel", "DiscreteVP", (4, 4, 4), ["text", "mask"]),
    "sd3": ("SD3Transformer2DModel", "Flow", (4, 4, 4), ["text", "pooled"]),
    "sana": ("SanaTransformer2DModel", "Flow", (4, 8, 8), ["text", "mask"]),
    "flux": ("FluxTransformer2DModel", "Flow", (4, 4, 4), ["text", "pooled", "guidance"]),
}
SIDE = {"flux": 4, "pixart 1024": 4}
TEXT = ("sd", "sdxl", "sd3", "flux", "pixart", "pixart 1024", "sana")
GUIDED = ("dit", "sd", "sdxl", "sd3", "pixart", "pixart 1024", "sana")


def conditioning(kind, tmp_path, guidance=1.0):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return Conditioning(prompts=str(file) if kind in TEXT else None, guidance=guidance)


@pytest.mark.parametrize("kind", FAMILIES)
def test_inspect_says_what_it_is(kind, tiny_pipeline, tmp_path, capsys):
    folder = tiny_pipeline(kind)
    assert main(["inspect", str(folder), "--json", str(tmp_path / "facts.json")]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    network, adapter, shape, conditions = FAMILIES[kind]
    assert (facts["network"], facts["adapter"]) == (network, adapter)
    assert facts["conditions"] == conditions
    if kind not in SIDE:
        assert facts["shape"] == list(shape)
    latent = kind in (*TEXT, "dit", "latent")
    codec = {"ncsnpp": "images in [0, 1]"}.get(kind, "none")
    autoencoder = {"sana": "AutoencoderDC", "latent": "VQModel"}.get(kind, "AutoencoderKL")
    assert facts["codec"] == (autoencoder if latent else codec)
    factor = {"sana": 4, "latent": 4}.get(kind, 8) if latent else 1
    assert facts["image_shape"] == [3, *(factor * side for side in facts["shape"][1:])]
    assert facts["learned_variance"] == (
        kind in ("learned variance", "dit", "pixart", "pixart 1024")
    )
    assert facts["null_condition"] == {
        "dit": "label 6",
        "flux": "none: guidance is built in",
        **dict.fromkeys(set(TEXT) - {"flux"}, "a negative prompt"),
    }.get(kind, "none")
    assert adapter in capsys.readouterr().out


def test_a_flux_without_guidance_has_no_null_condition(tiny_pipeline, tmp_path, capsys):
    guided = FluxTransformer2DModel.load_config(tiny_pipeline("flux") / "transformer")
    network = FluxTransformer2DModel.from_config(guided | {"guidance_embeds": False})
    network.save_pretrained(tmp_path)
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--json", str(tmp_path / "facts.json")]) == 2
    assert "expected an instructor with a model_index.json" in capsys.readouterr().err
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["conditions"] == ["text", "pooled"]
    assert facts["null_condition"] == "none"


@pytest.mark.parametrize("kind", FAMILIES)
def test_from_pipeline_to_pipeline(kind, tiny_pipeline, tmp_path):
    folder = tiny_pipeline(kind)
    guidance = 3.0 if kind in (*GUIDED, "flux") else 1.0
    asked = conditioning(kind, tmp_path, guidance)
    instructor = prepare(str(folder), asked, side=SIDE.get(kind))
    assert instructor.denoiser.shape == FAMILIES[kind][2]
    assert len(instructor.prior) == {"labels": 5, "dit": 6, **dict.fromkeys(TEXT, 3)}.get(kind, 0)
    method = Method().replace(
        divergence="sid",
        optimizer={"lr": 1e-3},
        train={"steps": 3, "batch": 4, "averages": [0]},
    )
    sigma = 50.0 if FAMILIES[kind][1] == "Flow" else 2.5
    student = OneStep(full_copy(instructor.denoiser), sigma)
    state = State.fresh(student, full_copy(instructor.denoiser), method)
    before = [parameter.clone() for parameter in student.parameters()]
    engine = Accelerator(cpu=True)
    for report in train(state, instructor.denoiser, method, engine, instructor.prior):
        assert report.norm.isfinite()
    networks = [*student.denoiser.modules(), *state.fake.modules()]
    assert not any(module.training for module in networks)  # label dropout of DiT stays off
    moved = [not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    names = [name for name, _ in student.named_parameters()]
    still = [name for name, each in zip(names, moved, strict=True) if not each]
    assert not still, still
    rehearse(student, folder)
    export(student, tmp_path / "student", CARD, folder)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    count = 3
    call = {"num_inference_steps": 1, "output_type": "pt"}
    if kind in TEXT:
        call |= {"prompt": PROMPTS, "guidance_scale": guidance if kind == "flux" else 1.0}
        call |= {"height": 32, "width": 32}
        call |= {"use_resolution_binning": False} if "pixart" in kind or kind == "sana" else {}
    elif kind == "dit":
        call |= {"class_labels": [0, 1, 2], "guidance_scale": 1.0}
    else:
        call["batch_size"] = count
        call |= {"class_labels": torch.arange(count)} if kind == "labels" else {}
        call["output_type"] = "np"
    if kind in ("sd3", "flux", "sana"):
        u = sigma / (1 + sigma)
        call["sigmas"] = [u]
        assert f"sigmas=[{u:.6g}]" in (tmp_path / "student" / "README.md").read_text()
    theirs = pipeline(generator=torch.Generator().manual_seed(5), **call).images
    if not isinstance(theirs, torch.Tensor):
        theirs = torch.from_numpy(theirs)
    if theirs.shape[-1] == 3:
        theirs = theirs.permute(0, 3, 1, 2)
    unit = torch.randn(count, *student.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        sample = student((unit,), instructor.prior.at(torch.arange(count)))
    ours = (instructor.codec.decode(sample) / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-4)
    if len(instructor.prior):
        with torch.no_grad():
            other = student((unit,), instructor.prior.at(torch.arange(count) + 1))
        assert (other - sample).abs().amax((1, 2, 3)).min() > 1e-4  # each condition matters


@pytest.mark.parametrize("kind", ["dit", "sd", "sdxl", "pixart 1024", "sd3", "sana", "flux"])
def test_half_precision_reaches_no_denoised_value(kind, tiny_pipeline, tmp_path):
    """D is of float32, and near itself: only a network's output is rounded."""
    asked = conditioning(kind, tmp_path)
    denoiser = (found := prepare(str(tiny_pipeline(kind)), asked, side=SIDE.get(kind))).denoiser
    sigma = torch.tensor([denoiser.sigma_min, 1.0, denoiser.sigma_max])
    noisy = torch.randn(3, *denoiser.shape) * (1 + sigma[:, None, None, None])
    wanted = found.prior.at(torch.arange(3))
    full = denoiser(noisy, sigma, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        half = denoiser(noisy, sigma, wanted)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.05 * full.std().item())


@pytest.mark.parametrize("negative", ["", "the sea"])
@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "pixart", "sana"])
def test_guidance_is_that_of_diffusers(kind, negative, tiny_pipeline, tmp_path):
    folder = tiny_pipeline(kind)
    asked = conditioning(kind, tmp_path, guidance=4.0)
    asked = asked.replace(negative=negative)
    instructor = prepare(str(folder), asked)
    sigma = 50.0 if kind in ("sd3", "sana") else 2.5
    student = OneStep(full_copy(instructor.denoiser), sigma)
    export(student, tmp_path / "student", CARD, folder)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    extra = {
        "sd3": {"sigmas": [sigma / (1 + sigma)]},
        "pixart": {"use_resolution_binning": False},
        "sana": {"use_resolution_binning": False, "sigmas": [sigma / (1 + sigma)]},
    }.get(kind, {})
    theirs = pipeline(
        PROMPTS,
        negative_prompt=[negative] * 3 if negative or kind in ("pixart", "sana") else None,
        guidance_scale=4.0,
        num_inference_steps=1,
        height=32,
        width=32,
        output_type="latent",
        generator=torch.Generator().manual_seed(5),
        **extra,
    ).images
    unit = torch.randn(3, *student.shape, generator=torch.Generator().manual_seed(5))
    start = student.denoiser.start(unit, student.sigma)
    level, wanted = torch.full((3,), student.sigma), instructor.prior.at(torch.arange(3))
    with torch.no_grad():
        ours = instructor.denoiser(start, level, wanted)
        plain = student.denoiser(start, level, wanted)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-4)
    assert (ours - plain).abs().max() > 0.01
