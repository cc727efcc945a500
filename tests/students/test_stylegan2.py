"""The generator against images of the original, and its parts against their definitions.

`golden/stylegan2` holds tiny random generators of NVIDIA's stylegan2-ada-pytorch, commit d72cc7d,
run on a CPU with its reference operators; biases, noise strengths and `w_avg` were made non-zero.
Each file has the constructor's arguments, the tensors, latents, and some pixels of the images they
gave: with constant noises, with none, with one per sample, and truncated to psi 0.7; and `w_avg`
after one batch in training mode.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from scipy.signal import correlate2d, upfirdn

from distill.build import full_copy
from distill.recipe import Method
from distill.trainer import State, train
from instil.base.average import Average
from instil.base.checkpoint import match
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.adapters.karras import Karras
from instructors.denoiser import class_labels
from students.gan.modulation import convolve, modulated_conv2d, upfirdn2d
from students.gan.stylegan2 import StyleGAN2
from students.weights import load_weights

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "stylegan2").glob("*.safetensors"))
TAPS = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8])


def read(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        arguments = json.loads(file.metadata()["arguments"])
    state = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("state/")}
    return arguments, state, tensors


@pytest.fixture(params=GOLDEN, ids=[path.stem for path in GOLDEN])
def golden(request):
    """A generator with the original's weights, its label condition, and what the original gave."""
    arguments, state, tensors = read(request.param)
    student = StyleGAN2.from_original(arguments).eval()
    load_weights(student, state, request.param.name)
    return student, class_labels(arguments["c_dim"], tensors["label"]), tensors


@pytest.fixture
def tiny():
    """A generator with random weights, biases and noise strengths, by constructor arguments."""

    def build(**arguments):
        settings = {"z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 64}
        student = StyleGAN2(**{"resolution": 16, "channel_max": 8} | settings | arguments)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return student

    return build


def check(image, tensors, name):
    torch.testing.assert_close(
        image.flatten(1)[:, tensors["pixels"]], tensors[f"image/{name}"], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_images_are_the_originals(golden):
    student, condition, tensors = golden
    z = tensors["z"]
    constants = [value for name, value in student.named_buffers() if name.endswith("noise_const")]
    check(student((z,), condition), tensors, "const")
    check(student((z,), condition, psi=0.7), tensors, "psi")
    none = (torch.zeros(2, 1, *noise.shape) for noise in constants)
    check(student((z, *none), condition), tensors, "none")
    # The golden noise of layer k and sample b is the constant one, moved b + 1 columns.
    rolled = (torch.stack([n.roll(1, -1), n.roll(2, -1)])[:, None] for n in constants)
    check(student((z, *rolled), condition), tensors, "layers")


def test_training_follows_the_mean_of_w_as_the_original(golden):
    student, condition, tensors = golden
    before = student.mapping.w_avg.clone()
    student((tensors["z"],), condition)
    assert torch.equal(student.mapping.w_avg, before)
    student.train()((tensors["z"],), condition)
    torch.testing.assert_close(student.mapping.w_avg, tensors["w_avg"], rtol=0, atol=1e-6)
    average = Average(student, halflife_images=1000)
    average.update(student, 1000, 10)
    assert torch.equal(average.module.mapping.w_avg, student.mapping.w_avg)


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("crop", [0, 1, 2])
def test_upfirdn_is_scipys_on_both_axes(up, crop):
    g = torch.Generator().manual_seed(up)
    x = torch.randn(2, 3, 5, 6, generator=g, dtype=torch.float64)
    rows, columns = torch.randn(2, 4, generator=g, dtype=torch.float64)
    found = upfirdn2d(x, torch.outer(rows, columns), up, crop)
    full = upfirdn(rows.numpy(), upfirdn(columns.numpy(), x.numpy(), up, axis=3), up, axis=2)
    cut = slice(crop, -crop or None)
    torch.testing.assert_close(found, torch.from_numpy(full[..., cut, cut].copy()))


def doubled(x, kernel, taps):
    """One channel by scipy: zeros between pixels, convolve with kernel and filter, cut out."""
    zeros = np.zeros((2 * x.shape[0] - 1, 2 * x.shape[1] - 1))
    zeros[::2, ::2] = x
    both = correlate2d(zeros, kernel[::-1, ::-1], mode="full")
    full = correlate2d(both, 4 * taps[::-1, ::-1], mode="full")
    start = 1 + len(kernel) // 2
    return full[start : start + 2 * x.shape[0], start : start + 2 * x.shape[1]]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_its_definition(kernel, up, demodulate):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64)
    weight = torch.randn(4, 3, kernel, kernel, generator=g, dtype=torch.float64)
    styles = torch.randn(2, 3, generator=g, dtype=torch.float64)
    found = modulated_conv2d(x, weight, styles, demodulate, TAPS if up else None)
    for b in range(2):
        for o in range(4):
            own = weight[o] * styles[b][:, None, None]
            if demodulate:
                own = own / (own.square().sum() + 1e-8).sqrt()
            expected = sum(
                doubled(x[b, i].numpy(), own[i].numpy(), TAPS.numpy())
                if up
                else correlate2d(x[b, i].numpy(), own[i].numpy(), mode="same")
                for i in range(3)
            )
            torch.testing.assert_close(found[b, o], torch.from_numpy(expected))


def test_gradients_of_the_parts_are_those_of_finite_differences():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(  # noqa: E731
        *shape, generator=g, dtype=torch.float64
    ).requires_grad_()
    x, weight, styles, taps = draw(2, 2, 3, 3), draw(3, 2, 3, 3), draw(2, 2), draw(4, 4)
    assert torch.autograd.gradcheck(lambda x, taps: upfirdn2d(x, taps, 2, 1), (x, taps))
    assert torch.autograd.gradcheck(convolve, (x, weight, taps))
    for demodulate in (False, True):
        for filtered in (None, taps):
            assert torch.autograd.gradcheck(
                lambda x, w, s, d=demodulate, f=filtered: modulated_conv2d(x, w, s, d, f),
                (x, weight, styles),
            )


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_parameter_is_trained_and_every_part_of_the_latent_matters(
    tiny, architecture, classes
):
    student = tiny(architecture=architecture, classes=classes)
    draws = Draws.of_range(0, 0, 0, 4)
    latent = tuple(part.requires_grad_() for part in student.prior(draws))
    image = student(latent, class_labels(classes, draws.index))
    assert image.shape == (4, *student.shape)
    (image * torch.randn_like(image)).sum().backward()
    for name, value in [*student.named_parameters(), *enumerate(latent)]:
        assert value.grad.isfinite().all(), name
        assert value.grad.abs().max() > 0, name


def test_it_is_distilled_as_any_student(tiny, unet):
    instructor = Karras(unet(classes=3), (1, 8, 8), classes=3).eval().requires_grad_(False)
    student = tiny(resolution=8, channels=1, classes=3).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    method = Method().replace(train={"steps": 2, "batch": 12})
    state = State.fresh(student, full_copy(instructor), method)
    with torch.no_grad():
        state.fake.network.conv_out.bias.add_(0.1)  # else the first gap is exactly zero
    for report in train(state, instructor, method, Accelerator(cpu=True)):
        assert report.norm.isfinite()
    fixed = ("noise_const", "resample_filter")
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.endswith(fixed), name
    assert torch.equal(state.averages[0].module.mapping.w_avg, student.mapping.w_avg)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_images_are_float32_under_autocast_too(tiny, dtype):
    student = tiny(architecture="resnet").train()
    latent = student.prior(Draws.of_range(0, 0, 0, 2))
    exact = student(latent)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        image = student(latent)
    assert image.dtype == torch.float32
    assert (image - exact).abs().mean() < 0.03 * exact.std()


@torch.no_grad()
def test_image_k_depends_on_seed_k_alone(tiny):
    student = tiny(classes=3).eval()
    many = student(student.prior(Draws.of_range(5, 0, 0, 6)), class_labels(3, torch.arange(6)))
    one = student(student.prior(Draws.of_range(5, 0, 4, 1)), class_labels(3, torch.tensor([4])))
    torch.testing.assert_close(many[4:5], one, rtol=0, atol=1e-5)
    torch.manual_seed(1)
    again = student(student.prior(Draws.of_range(5, 0, 0, 6)), class_labels(3, torch.arange(6)))
    assert torch.equal(many, again)


def test_the_published_configurations_have_the_published_sizes():
    # `train.py --cfg`: 512 channels up to 64x64 under `cifar`; `auto` halves the base below 512.
    with torch.device("meta"):
        sizes = [(32, 32768), (256, 16384), (1024, 32768)]
        cifar, auto, large = (StyleGAN2(side, channel_base=base) for side, base in sizes)
    widths = lambda s: [len(block.conv1.bias) for block in s.synthesis.values()]  # noqa: E731
    assert widths(cifar) == [512, 512, 512, 512]
    assert widths(auto) == [512, 512, 512, 512, 256, 128, 64]
    assert widths(large)[-3:] == [128, 64, 32]


@torch.no_grad()
def test_the_newer_repository_names_the_same_network_otherwise():
    arguments, state, _ = read(GOLDEN[0])
    newer = dict(arguments)
    newer |= dict(newer.pop("synthesis_kwargs")) | {"fused_modconv_default": "inference_only"}
    older = StyleGAN2.from_original(arguments)._hub_mixin_config
    same = StyleGAN2.from_original(newer)
    assert same._hub_mixin_config == older | {
        "clamp": newer.get("conv_clamp", 256.0),
        "average_decay": newer["mapping_kwargs"].get("w_avg_beta", 0.998),
    }
    load_weights(same, state, "newer")


@torch.no_grad()
def test_without_noise_the_image_is_that_of_silent_layers(tiny):
    silent, student = tiny(noise=False), tiny()
    student.load_state_dict(silent.state_dict(), strict=False)
    draws = Draws.of_range(0, 0, 0, 2)
    (z,) = silent.prior(draws)
    none = (torch.zeros(2, 1, *noise.shape) for noise in student._constants())
    torch.testing.assert_close(silent((z,)), student((z, *none)))
    assert not any("noise" in name for name in silent.state_dict())


def test_a_folder_gives_the_same_student_back_or_is_refused(tiny, tmp_path):
    student = tiny(classes=3, architecture="resnet").eval()
    folder = tmp_path / "student"
    student.save_pretrained(folder)
    loaded = StyleGAN2.from_pretrained(folder)
    latent, label = student.prior(Draws.of_range(0, 0, 0, 2)), class_labels(3, torch.arange(2))
    assert torch.equal(loaded(latent, label), student(latent, label))
    assert json.loads((folder / "config.json").read_text())["architecture"] == "resnet"
    tiny().save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(InstilError, match=r"other weights: missing mapping.embed.weight"):
        StyleGAN2.from_pretrained(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InstilError, match=r"config.json does not describe a StyleGAN2"):
        StyleGAN2.from_pretrained(folder)


def test_a_copy_is_a_student_of_its_own(tiny):
    student = tiny()
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.synthesis.b4.const.zero_()
    assert student.synthesis.b4.const.abs().sum() > 0


def test_wrong_weights_are_named_and_nothing_is_copied(tiny):
    student = tiny()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state["mapping.embed.weight"] = state.pop("mapping.w_avg")
    state["synthesis.b4.const"] = state["synthesis.b4.const"][:4]
    found = match(state, before)
    assert found["missing"] == ["mapping.w_avg"]
    assert found["unexpected"] == ["mapping.embed.weight"]
    assert found["differing"] == ["synthesis.b4.const"]
    assert len(found["matched"]) == len(before) - 2
    with pytest.raises(
        InstilError, match=r"g.pkl: .*missing mapping.w_avg; unexpected mapping.emb"
    ):
        load_weights(student, state, "g.pkl")
    broken = dict(before) | {"mapping.w_avg": before["mapping.w_avg"] / 0}
    with pytest.raises(InstilError, match=r"g.pkl: values that are not finite in mapping.w_avg"):
        load_weights(student, broken, "g.pkl")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_resolution": 48}, r"resolution: 48 is no power of two"),
        ({"extra": 1}, r"extra is not known"),
        ({"magnitude_ema_beta": 0.99}, r"a generator of StyleGAN3 or StyleGAN-XL, which has"),
        ({"NoiseDimension": 64}, r"a generator of R3GAN"),
        ({"mapping_kwargs": {"activation": "relu"}}, r"activation is 'relu', supp"),
        ({"synthesis_kwargs": {"resample_filter": [1, 2, 1]}}, r"resample_filter is \[1, 2, 1\]"),
        ({"synthesis_kwargs": {"architecture": "unet"}}, r"architecture: 'unet' is not one of"),
    ],
)
def test_arguments_of_another_generator_are_refused(change, message):
    arguments = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 16, "img_channels": 3}
    with pytest.raises(InstilError, match=message):
        StyleGAN2.from_original(arguments | change)
    del arguments["z_dim"]
    with pytest.raises(InstilError, match=r"z_dim is missing"):
        StyleGAN2.from_original(arguments)


def test_labels_and_noises_must_fit(tiny):
    student, conditional = tiny(), tiny(classes=3)
    latent = student.prior(Draws.of_range(0, 0, 0, 2))
    with pytest.raises(ValueError, match=r"label: expected no labels"):
        student(latent, class_labels(3, torch.arange(2)))
    with pytest.raises(ValueError, match=r"label: expected class numbers below 3, got none"):
        conditional(latent)
    with pytest.raises(ValueError, match=r"latent: expected z and 5 noises"):
        student(latent[:3])
