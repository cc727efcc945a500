"""What a user types becomes an instructor, or one sentence."""

import json

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    ScoreSdeVeScheduler,
)
from safetensors.torch import load_file, save_file

from instil.base.errors import InstilError
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.karras import Karras
from instructors.files.sources import zoo
from instructors.load import load


def test_embedded_instructors_load_frozen():
    assert {"digits", "digits-0-4", "digits-5-9"} <= set(zoo())
    instructor = load("digits")
    assert isinstance(instructor.denoiser, Karras)
    assert instructor.denoiser.shape == (1, 8, 8)
    assert instructor.denoiser.classes == 10
    assert load("digits-0-4").denoiser.classes == 5
    assert not instructor.denoiser.training
    assert not any(p.requires_grad for p in instructor.denoiser.parameters())
    assert instructor.card.licence == "apache-2.0"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_saved_pipeline_and_the_layout_of_bare_models(unet, tmp_path, prediction):
    network, scheduler = unet(channels=3), DDPMScheduler(prediction_type=prediction)
    DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "pipeline")
    network.save_pretrained(tmp_path / "root")
    scheduler.save_pretrained(tmp_path / "root")
    one, two = load(str(tmp_path / "pipeline")), load(str(tmp_path / "root"))
    assert isinstance(one.denoiser, DiscreteVP)
    assert one.denoiser.prediction == prediction
    noisy, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 5.0])
    assert torch.equal(one.denoiser(noisy, sigma), two.denoiser(noisy, sigma))
    assert one.card.sha256 == two.card.sha256


def test_other_schedulers_of_the_same_schedule_are_understood(unet, tmp_path):
    DDIMPipeline(unet(), DDIMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path)
    expected = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    found = load(str(tmp_path)).denoiser
    sigmas = ((1 - expected) / expected).sqrt()
    torch.testing.assert_close(found.log_sigmas.exp(), sigmas, rtol=1e-4, atol=0)


def test_old_schedulers_say_what_is_predicted_in_their_own_way(unet, tmp_path):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path)
    edit(tmp_path / "scheduler/scheduler_config.json", predict_epsilon=False)
    assert load(str(tmp_path)).denoiser.prediction == "sample"


def test_an_existing_folder_wins_over_an_embedded_name(unet, tmp_path, monkeypatch):
    DDPMPipeline(unet(channels=3), DDPMScheduler()).save_pretrained(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load("digits").denoiser.shape == (3, 8, 8)


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def truncate(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop(folder, name):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f / "unet/config.json", _class_name="VQModel"), "a VQModel is not supp"),
        (lambda f: edit(f / "unet/config.json", center_input_sample=True), "center_input_sample"),
        (lambda f: edit(f / "unet/config.json", time_embedding_type="fourier"), "fourier"),
        (lambda f: (f / "unet/config.json").write_text("{"), "not a JSON file"),
        (lambda f: (f / "unet/config.json").unlink(), "holds no unet/config.json"),
        (lambda f: drop(f, "conv_in.bias"), "missing keys: conv_in.bias"),
        (lambda f: edit(f / "unet/config.json", layers_per_block=2), "weights cannot be loaded"),
        (lambda f: edit(f / "unet/config.json", block_out_channels=[8, 8]), "weights"),
        (lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="flow"), "'flow'"),
        (
            lambda f: edit(f / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
            "zero terminal SNR",
        ),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "has no scheduler_config"),
        (
            lambda f: EDMEulerScheduler(prediction_type="sample").save_pretrained(f / "scheduler"),
            "EDMEulerScheduler with prediction type 'sample' is not supported",
        ),
        (truncate, "weights cannot be loaded"),
        (lambda f: edit(f / "unet/config.json", sample_size="8x8"), "sample_size '8x8': expected"),
        (lambda f: edit(f / "unet/config.json", sample_size=[8, -8]), "expected a height and a"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "cannot be loaded"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(unet, tmp_path, damage, message):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InstilError, match=message):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        (EDMEulerScheduler, {"sigma_data": ...}, "its scheduler names no 'sigma_data'"),
        (EDMEulerScheduler, {"sigma_data": "x"}, "its scheduler holds values of another kind"),
        (EDMEulerScheduler, {"sigma_data": 0.0}, "sigma_data 0.0: expected a positive number"),
        (EDMEulerScheduler, {"sigma_min": 0.0}, "sigma from 0.0 to 80.0: expected two positive"),
        (EDMEulerScheduler, {"sigma_max": 0.001}, "sigma from 0.002 to 0.001"),
        (DDPMScheduler, {"beta_start": "x"}, "its scheduler holds values of another kind"),
        (DDPMScheduler, {"trained_betas": "x"}, "its scheduler holds values of another kind"),
        (DDPMScheduler, {"num_train_timesteps": "x"}, "its scheduler holds values of another"),
        (DDPMScheduler, {"num_train_timesteps": 1}, "noise levels do not rise"),
        (DDPMScheduler, {"num_train_timesteps": 0}, "noise levels do not rise"),
        (DDPMScheduler, {"num_train_timesteps": 10**9}, "more than 100,000 times"),
        (DDPMScheduler, {"beta_schedule": "mine"}, "mine is not implemented"),
        (
            ScoreSdeVeScheduler,
            {},
            "supported with time_embedding_type=fourier",
        ),
    ],
)
def test_schedules_that_make_no_sense(unet, tmp_path, scheduler, changes, message):
    unet().save_pretrained(tmp_path)
    scheduler().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    with pytest.raises(InstilError, match=message) as caught:
        load(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: mit\n---\n# A model", "mit"),
        (b"# A model", "unknown"),
        (b"---\nlicense: [a, b]\n---\n", "unknown"),
        (b"---\nlicense: [\n---\n", "unknown"),
        (b"---\nmit\n---\n", "unknown"),
        (b"---\nlicense: \xff\n---\n", "unknown"),
    ],
)
def test_the_licence_is_the_cards(unet, tmp_path, card, licence):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(card)
    assert load(str(tmp_path)).card.licence == licence


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "no-such-user/no-such-model"])
def test_sources_that_are_nowhere(source):
    with pytest.raises(InstilError, match=source):
        load(source)


def test_a_file_is_no_instructor(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"x")
    with pytest.raises(InstilError, match="expected the folder of a diffusers model"):
        load(str(tmp_path / "model.pkl"))
