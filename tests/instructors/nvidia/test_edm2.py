"""EDM2's checkpoints: the same numbers as EDM2's own code, run elsewhere, and unit magnitudes."""

import json
import math
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors import safe_open
from scipy import integrate

from distill.build import full_copy
from distill.recipe import Method
from distill.trainer import State, train
from instil.base.errors import InstilError
from instructors.__main__ import main
from instructors.adapters.karras import Karras
from instructors.denoiser import class_labels
from instructors.load import load
from instructors.nvidia.checkpoint import read_checkpoint
from instructors.nvidia.convert import convert
from instructors.nvidia.edm2_unet import (
    EDM2UNet,
    MPConv,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalized,
)
from students.export import export
from students.load import load as load_student
from students.one_step import OneStep
from students.source import Source

GOLDEN = Path(__file__).parents[2] / "golden" / "edm2"
# Of EDM2's encoder of latents: mean and standard deviation by channel, divided by two.
MEAN, STD = [5.81, 3.25, 0.12, -2.15], [8.34, 9.24, 7.42, 6.56]


def numbers(name, shape):
    """Standard normals that every version of NumPy draws alike; the golden networks' weights."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


class Golden:
    """What EDM2's own code computed, and the checkpoint it computed it from."""

    def __init__(self, name):
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            meta = file.metadata()
            self.found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.arguments = json.loads(meta["arguments"])
        shapes = json.loads(meta["shapes"])
        self.tensors = {key: numbers(key, tuple(shape)) for key, shape in shapes.items()}
        side, channels = self.arguments["img_resolution"], self.arguments["img_channels"]
        self.x, self.sigma = numbers("x", (4, channels, side, side)), self.found["sigma"]
        self.noisy = self.x * (self.sigma**2 + 0.25).sqrt()[:, None, None, None]
        self.condition = class_labels(self.arguments["label_dim"], torch.arange(4))


@pytest.fixture
def checkpoint(persistent, tmp_path):
    """A snapshot as EDM2's code writes it, in half precision, with changes."""

    def write(
        name, protocol=4, dtype=torch.float16, encoder=None, tensors=None, given=None, **changes
    ):
        golden = Golden(name)
        tensors = {k: t.to(dtype) for k, t in (tensors or golden.tensors).items()}
        network = persistent("Precond", tensors, (given or golden.arguments) | changes)
        if encoder is None:
            latent = golden.arguments["img_channels"] == 4
            mean, std = np.float32(MEAN), np.float32(STD)
            encoder = ("StabilityVAEEncoder", {"scale": 1 / std, "bias": -mean / std, "_vae": None})
            encoder = encoder if latent else ("StandardRGBEncoder", {})
        beside = persistent(encoder[0], **encoder[1])
        content = {"encoder": beside, "dataset_kwargs": {"path": "x"}, "ema": network}
        path = tmp_path / "edm2-img64-s-1073741-0.075.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        return path, golden

    return write


@pytest.fixture
def autoencoder(tmp_path):
    """The folder of a tiny one."""

    def make(latent_channels=4):
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        }
        sizes = {"block_out_channels": (4, 4), "norm_num_groups": 2}
        AutoencoderKL(latent_channels=latent_channels, **blocks, **sizes).save_pretrained(
            tmp_path / "vae"
        )
        return str(tmp_path / "vae")

    return make


def close(found, expected, tolerance):
    """Whether each sample agrees, relative to its own norm."""
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < tolerance, error


@pytest.mark.parametrize("name", ["labels", "latent", "levels"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_same_numbers_as_edm2s_own_code(checkpoint, name, protocol):
    path, golden = checkpoint(name, protocol, torch.float32)
    denoiser = read_checkpoint(path).denoiser
    assert list(denoiser.network.state_dict()) == [
        key.removeprefix("unet.") for key in golden.tensors if key.startswith("unet.")
    ]
    with torch.no_grad():
        close(
            denoiser(golden.noisy, golden.sigma, golden.condition), golden.found["denoised"], 1e-5
        )
        label, time = golden.condition.get("label"), golden.sigma.log() / 4
        close(denoiser.network(golden.x, time, label), golden.found["network"], 1e-5)


@pytest.mark.parametrize("name", ["labels", "latent", "levels"])
def test_a_snapshot_in_half_precision_becomes_a_folder(checkpoint, autoencoder, tmp_path, name):
    path, golden = checkpoint(name)
    latent = golden.arguments["img_channels"] == 4
    convert(path, tmp_path / "out", autoencoder() if latent else None)
    loaded = load(str(tmp_path / "out"))
    arguments = (golden.noisy, golden.sigma, golden.condition)
    assert torch.equal(loaded.denoiser(*arguments), read_checkpoint(path).denoiser(*arguments))
    with torch.no_grad():
        close(loaded.denoiser(*arguments), golden.found["denoised"], 1e-2)
    assert loaded.denoiser.sigma_data == golden.arguments.get("sigma_data", 0.5)
    assert loaded.codec.image_shape(golden.x.shape[1:])[1:] == ((16, 16) if latent else (8, 8))


def test_latents_are_normalized_as_the_file_says(checkpoint, autoencoder, tmp_path):
    path, _ = checkpoint("latent")
    convert(path, tmp_path / "out", autoencoder())
    codec = load(str(tmp_path / "out")).codec
    raw = AutoencoderKL.from_pretrained(tmp_path / "vae")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (MEAN, STD))
    with torch.no_grad():
        # The original's autoencoder is given pixels / 255, and its output times 255 are pixels.
        latents = raw.encode((images + 1) / 2).latent_dist.mode()
        torch.testing.assert_close(codec.encode(images), (latents - mean) / std)
        pixels = raw.decode(latents).sample.clamp(0, 1) * 255
        found = (codec.decode((latents - mean) / std).clamp(-1, 1) + 1) * 127.5
        torch.testing.assert_close(found, pixels, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "millions"), [(128, 125), (192, 280), (256, 498), (320, 777), (384, 1119)]
)
def test_the_published_sizes(channels, millions):
    # Table 2 of the paper; the networks of latents, with the channels they differ in.
    with torch.device("meta"):
        network = EDM2UNet(64, 4, 4, num_class_embeds=1000, model_channels=channels)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def second_moment(function):
    """E f(z)**2 of a standard normal z, by quadrature."""
    density = lambda z: function(z) ** 2 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    return integrate.quad(density, -12, 12)[0]


def test_closed_forms_of_the_operations():
    assert second_moment(lambda z: mp_silu(torch.tensor(z)).item()) == pytest.approx(1, abs=2e-3)
    one, two = torch.randn(2, 7, 6, 4, 4, dtype=torch.float64)
    # Variances add: of independent inputs of variance v and w, ((1-t)^2 v + t^2 w) / (…).
    torch.testing.assert_close(mp_sum(one, two, 0.3), (0.7 * one + 0.3 * two) / 0.58**0.5)
    joined = mp_cat(one, two[:, :2], 0.5)
    torch.testing.assert_close(joined[:, :6], one * (8 / 6 / 2) ** 0.5)
    torch.testing.assert_close(joined[:, 6:], two[:, :2] * (8 / 2 / 2) ** 0.5)
    rms = normalized(5 * one, (1,)).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=1e-3)


def test_every_operation_keeps_unit_magnitude():
    torch.manual_seed(0)
    x, other = torch.randn(2, 64, 32, 8, 8)
    few = other[:, :8]
    fourier = MPFourier(4096)(torch.linspace(-2, 2, 16))
    results = {
        "convolution": MPConv(32, 64, 1)(x),
        "linear": MPConv(32, 512)(x[:, :, 0, 0]),
        "scaled weights": MPConv(32, 64, 1).requires_grad_(False)(x),
        "silu": mp_silu(x),
        "sum": mp_sum(x, other, 0.3),
        "concatenation": mp_cat(x, few, 0.5),
        "fourier": fourier,
    }
    found = {name: each.square().mean().item() for name, each in results.items()}
    assert found == {name: pytest.approx(1, abs=0.08) for name in found}


def test_the_network_keeps_unit_magnitude():
    torch.manual_seed(0)
    network = EDM2UNet(16, 3, 3, model_channels=32, channel_mult=(1, 2), num_blocks=2)
    network.out_gain.data.fill_(1)
    found = {}

    def note(name):
        return lambda *call: found.update({name: call[-1].square().mean().sqrt().item()})

    for part in ("enc", "dec"):
        for name, module in network.get_submodule(part).named_children():
            module.register_forward_hook(note(f"{part}.{name}"))
    network.register_forward_hook(note("output"))
    network(torch.randn(8, 3, 16, 16), torch.randn(8))
    assert len(found) == 16
    assert found == {name: pytest.approx(1, abs=0.35) for name in found}


def test_weights_that_learn_are_put_back_to_unit_magnitude_and_others_left_alone():
    torch.manual_seed(0)
    layer, x = MPConv(8, 16, 3), torch.randn(4, 8, 6, 6)
    layer.weight.data.mul_(7)
    frozen = layer.weight.detach().clone()
    with torch.no_grad():
        expected = layer(x)
    assert torch.equal(layer.weight, frozen)
    one, two = layer(x), layer(x, 2.0)  # two calls before one way back
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    rms = layer.weight.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.ones(16), rtol=0, atol=2e-4)
    (one + two).square().sum().backward()
    # Only directions count, so the gradient has no part along the weights.
    along = (layer.weight.grad * layer.weight).sum((1, 2, 3))
    across = layer.weight.grad.flatten(1).norm(dim=1) * layer.weight.flatten(1).norm(dim=1)
    assert (along.abs() < 1e-3 * across).all()


GIVEN = {"img_resolution": 8, "img_channels": 4, "label_dim": 5, "dropout": 0.1} | {
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 16,
}


def tiny():
    """A denoiser whose output is not all skip connection."""
    torch.manual_seed(0)
    options = {key: value for key, value in GIVEN.items() if key[:4] not in ("img_", "labe")}
    network = EDM2UNet(8, 4, 4, 5, **options)
    for name, parameter in network.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.7)
    return Karras(network, (4, 8, 8), classes=5).eval().requires_grad_(False)


def test_from_a_snapshot_to_a_student_that_is_read_again(checkpoint, autoencoder, tmp_path):
    denoiser = tiny()
    tensors = {f"unet.{name}": tensor for name, tensor in denoiser.network.state_dict().items()}
    path, _ = checkpoint("latent", tensors=tensors, given=GIVEN)
    convert(path, tmp_path / "out", autoencoder())
    instructor = load(str(tmp_path / "out"))
    method = Method().replace(
        divergence="sid",
        optimizer={"lr": 1e-3},
        train={"steps": 3, "batch": 4, "averages": [0]},
    )
    student = OneStep(full_copy(instructor.denoiser), 2.5)
    state = State.fresh(student, full_copy(instructor.denoiser), method)
    before = {name: each.clone() for name, each in student.named_parameters()}
    for report in train(
        state, instructor.denoiser, method, Accelerator(cpu=True), instructor.prior
    ):
        assert report.norm.isfinite()
    assert not [name for name, each in student.named_parameters() if each.equal(before[name])]
    for trained in (state.student, state.fake):
        for name, module in trained.named_modules():
            if isinstance(module, MPConv):  # one update after they were put back
                rms = module.weight.flatten(1).square().mean(1).sqrt()
                torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=0.02, msg=name)
    card = {"instructor": "x", "licence": "unknown", "recipe": "a: 1\n", "figures": {"NFE": "1"}}
    export(student, tmp_path / "student", card, tmp_path / "out")
    again = load_student(Source(weights=str(tmp_path / "student")))
    assert torch.equal(again.sample(range(4)), student.sample(range(4)))
    codec = load(str(tmp_path / "student")).codec
    images = [each.decode(student.sample(range(4))) for each in (codec, instructor.codec)]
    assert images[0].shape == (4, 3, 16, 16)
    assert torch.equal(*images)


@pytest.mark.slow
def test_autocast_and_the_compiler_understand_the_network():
    denoiser = tiny()
    noisy, sigma = torch.randn(4, 4, 8, 8), torch.tensor([0.01, 0.5, 2.0, 50.0])
    noisy, condition = noisy * sigma[:, None, None, None], class_labels(5, torch.arange(4))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = denoiser(noisy, sigma, condition)
    assert half.dtype == torch.float32
    close(half, denoiser(noisy, sigma, condition), 0.05)
    network = denoiser.network.requires_grad_(True)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    outputs = []
    for call in (network, compiled):
        network.zero_grad()
        output = call(noisy, sigma.log() / 4, condition["label"])
        output.square().sum().backward()
        outputs += [output, network.enc["8x8_conv"].weight.grad.clone()]
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[1], outputs[3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "SongUNet"}, r"model_type: unknown key"),
        ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter: unknown key"),
        ({"num_blocks": 2}, r"holds other weights: missing enc\.8x8_block1"),
        ({"label_balance": 2.0}, r"label_balance: input should be less than or equal to 1"),
        ({"clip_act": float("inf")}, r"clip_act: "),
        (
            {"encoder": ("OtherEncoder", {})},
            r"encoder OtherEncoder: expected StandardRGB",
        ),
        ({"encoder": ("StabilityVAEEncoder", {})}, r"encoder: expected a scale and a bias of 3"),
        (
            {"encoder": ("StabilityVAEEncoder", dict.fromkeys(("scale", "bias"), np.zeros(3)))},
            r"encoder: expected finite numbers, and positive ones as scale",
        ),
    ],
)
def test_a_snapshot_that_is_not_what_it_says(checkpoint, tmp_path, changes, message):
    path, _ = checkpoint("labels", **changes)
    with pytest.raises(InstilError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "out").exists()


def test_the_command_asks_for_the_right_autoencoder(checkpoint, autoencoder, tmp_path, capsys):
    def refused(path, *words):
        assert main(["convert", str(path), "--out", str(tmp_path / "out"), *words]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    path, _ = checkpoint("latent")
    assert "a model of latents; name the folder of its autoencoder with --vae" in refused(path)
    assert "holds no config.json and no vae/config.json" in refused(path, "--vae", str(tmp_path))
    vae = autoencoder(3)
    assert "its latents have 4 channels, those of --vae 3" in refused(path, "--vae", vae)
    path, _ = checkpoint("labels")
    assert "a model of images, which needs no autoencoder" in refused(path, "--vae", vae)
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "1.58 with 63 evaluations" in said.out
    assert "licence: cc-by-nc-sa-4.0, which students" in said.err
    assert "EDM2's code (Karras et al. 2024" in (tmp_path / "out" / "README.md").read_text()
