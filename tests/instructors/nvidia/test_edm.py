"""EDM's checkpoints: the same numbers as EDM's own code, run elsewhere, and no surprises."""

import json
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from distill.__main__ import main as distill
from instil.base.config.recipes import named_recipes
from instil.base.errors import InstilError
from instructors.__main__ import main
from instructors.adapters.continuous import ContinuousVE, ContinuousVP
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.karras import Karras
from instructors.denoiser import class_labels
from instructors.load import load
from instructors.nvidia.checkpoint import read_checkpoint
from instructors.nvidia.convert import PUBLISHED, convert
from instructors.sampler import heun
from students.one_step import OneStep

ROOT = Path(__file__).parents[3]
GOLDEN = sorted((ROOT / "tests" / "golden" / "edm").glob("*.safetensors"))
NAMES = [path.stem for path in GOLDEN]


def numbers(name, shape):
    """Standard normals that every version of NumPy draws alike."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def weight(name, shape, taps):
    """The value that the golden networks were given."""
    if name.endswith("resample_filter"):
        line = torch.tensor(taps, dtype=torch.float32)
        return (torch.outer(line, line) / line.sum() ** 2).reshape(shape)
    values = numbers(name, tuple(shape))
    if len(shape) > 1:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif not name.endswith("freqs"):
        values = values / 8 + (name.rpartition(".")[2] == "weight")
    return torch.from_numpy(values.astype(np.float32))


class Golden:
    """What EDM's own code computed, and the checkpoint it computed it from."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            self.found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.class_name, self.arguments = meta["class_name"], json.loads(meta["arguments"])
        taps = self.arguments.get("resample_filter", [1, 1])
        self.tensors = {
            name: self.found["buffer.u"] if name == "u" else weight(name, shape, taps)
            for name, shape in json.loads(meta["shapes"]).items()
        }
        side, channels = self.arguments["img_resolution"], self.arguments["img_channels"]
        self.sigma = self.found["sigma"]
        self.x = torch.from_numpy(numbers("x", (4, channels, side, side)).astype(np.float32))
        self.noisy = self.x * (self.sigma**2 + 0.25).sqrt()[:, None, None, None]
        self.condition = class_labels(self.arguments.get("label_dim", 0), torch.arange(4))
        self.label = self.condition.get("label")


@pytest.fixture
def checkpoint(persistent, tmp_path):
    """A file as EDM's code writes it, by golden name or with changes."""

    def write(name, protocol=4, file="network.pkl", tensors=None, class_name=None, **changes):
        golden = Golden(GOLDEN[NAMES.index(name)])
        given = golden.arguments | changes
        given = {key: value for key, value in given.items() if value is not ...}
        network = persistent(class_name or golden.class_name, tensors or golden.tensors, given)
        content = {"ema": network, "loss_fn": None, "dataset_kwargs": {"path": "x"}}
        (tmp_path / file).write_bytes(pickle.dumps(content, protocol))
        return tmp_path / file, golden

    return write


def close(found, expected, tolerance=1e-5):
    """Whether each sample agrees, relative to its own norm."""
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < tolerance, error


def test_there_is_a_golden_value_for_every_option():
    assert len(GOLDEN) == 34
    sizes = [path.stat().st_size for path in GOLDEN]
    assert max(sizes) < 100_000
    assert sum(sizes) < 700_000


@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_as_edms_own_code(checkpoint, name):
    path, golden = checkpoint(name, protocol=2 + NAMES.index(name) % 4)
    denoiser = read_checkpoint(path).denoiser
    with torch.no_grad():
        close(denoiser(golden.noisy, golden.sigma, golden.condition), golden.found["denoised"])
        time = golden.sigma.log() / 4
        raw = denoiser.network(golden.x, time, class_labels=golden.label)
        raw = raw if isinstance(raw, torch.Tensor) else raw.sample
        close(raw, golden.found["network"])
        if "augmented" in golden.found and not name.startswith("adm"):
            shape = (4, golden.arguments["augment_dim"])
            augment = torch.from_numpy(numbers("augment", shape).astype(np.float32))
            raw = denoiser.network(golden.x, time, golden.label, augment)
            close(raw, golden.found["augmented"])


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("edm-fp16", Karras),
        ("song-fourier-residual-skip-4", Karras),
        ("song-positional-skip-standard-2", Karras),
        ("vp-other", ContinuousVP),
        ("ve-other", ContinuousVE),
        ("adm-iddpm", DiscreteVP),
        ("adm-edm", Karras),
    ],
)
def test_a_converted_folder_loads_as_the_same_denoiser(checkpoint, tmp_path, name, adapter):
    path, golden = checkpoint(name)
    direct = read_checkpoint(path).denoiser
    convert(path, tmp_path / "out")
    loaded = load(str(tmp_path / "out"))
    assert type(loaded.denoiser) is adapter
    for key in ("shape", "sigma_min", "sigma_max", "classes"):
        assert getattr(loaded.denoiser, key) == pytest.approx(getattr(direct, key)), key
    assert not any(p.requires_grad for p in loaded.denoiser.parameters())
    arguments = (golden.noisy, golden.sigma, golden.condition)
    assert torch.equal(loaded.denoiser(*arguments), direct(*arguments))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("vp-other", 0.002, 80), ("ve-other", 0.02, 80), ("adm-iddpm", 0, 80)]
)
def test_a_converted_folder_samples_between_the_levels_of_edms_generate(
    checkpoint, tmp_path, name, low, high
):
    """`generate.py` samples from 0.002 to 80, cut to the range of the network."""
    path, _ = checkpoint(name)
    convert(path, tmp_path / "out")
    denoiser = load(str(tmp_path / "out")).denoiser
    low, high = max(low, denoiser.sigma_min, 0.002), min(high, denoiser.sigma_max)
    assert (denoiser.sampled or (denoiser.sigma_min, denoiser.sigma_max)) == pytest.approx(
        (low, high)
    )
    seen = []
    denoiser.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1][0].item()))
    heun(
        denoiser,
        torch.zeros(1, *denoiser.shape),
        3,
        class_labels(denoiser.classes, torch.zeros(1).long()),
    )
    assert (min(seen), max(seen)) == pytest.approx((low, high))


def test_a_generator_of_sid_is_told_from_a_denoiser(persistent, tmp_path):
    """SiD's code pickles the generator alone, EDM's the network with its loss."""
    golden = Golden(GOLDEN[NAMES.index("edm-fp16")])
    network = persistent(golden.class_name, golden.tensors, golden.arguments)
    for name, beside in (("sid", {}), ("edm", {"loss_fn": None})):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({"ema": network} | beside))
        convert(tmp_path / f"{name}.pkl", tmp_path / name)
    assert "few-step-generator" in load(str(tmp_path / "sid")).card.distilled
    assert not load(str(tmp_path / "edm")).card.distilled


def test_the_flag_of_half_precision_changes_nothing(checkpoint, tmp_path):
    on, golden = checkpoint("edm-fp16", file="on.pkl")
    off, _ = checkpoint("edm-fp16", file="off.pkl", use_fp16=False)
    arguments = (golden.noisy, golden.sigma, golden.condition)
    found = [read_checkpoint(each).denoiser(*arguments) for each in (on, off)]
    assert torch.equal(*found)
    half = {name: tensor.half() for name, tensor in golden.tensors.items()}
    stored, _ = checkpoint("edm-fp16", file="half.pkl", tensors=half)
    denoiser = read_checkpoint(stored).denoiser
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
    close(denoiser(*arguments), golden.found["denoised"], 1e-2)


def test_levels_that_iddpm_has_seen_have_whole_times(checkpoint):
    path, golden = checkpoint("adm-iddpm")
    denoiser = read_checkpoint(path).denoiser
    levels = golden.found["buffer.u"][:-1].flip(0)
    torch.testing.assert_close(denoiser.time(levels), torch.arange(1000.0), rtol=0, atol=2e-3)
    assert denoiser.sigma_max == pytest.approx(levels[-1].item())
    torch.testing.assert_close(denoiser.round_sigma(levels), levels)


def exact(noisy, sigma, std):
    """The posterior mean of N(0, std**2)."""
    return std**2 / (std**2 + sigma[:, None] ** 2) * noisy


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_sde_adapters_turn_a_perfect_network_into_the_exact_denoiser(std):
    class VP(torch.nn.Module):
        def forward(self, x, time, class_labels=None):
            t = (time / 999)[:, None]
            s = (19.9 * t**2 / 2 + 0.1 * t).expm1().sqrt()
            noisy = x * (1 + s**2).sqrt()
            return (noisy - exact(noisy, s[:, 0], std)) / s

    class VE(torch.nn.Module):
        def forward(self, x, time, class_labels=None):
            s = 2 * time.exp()
            return (exact(x, s, std) - x) / s[:, None]

    for denoiser in (ContinuousVP(VP(), (3,)), ContinuousVE(VE(), (3,))):
        low, high = denoiser.sigma_min * 1.001, denoiser.sigma_max * 0.999
        sigma = torch.logspace(np.log10(low), np.log10(high), 64, dtype=torch.float64)
        noisy = torch.randn(64, 3, dtype=torch.float64) * (std**2 + sigma**2).sqrt()[:, None]
        close(denoiser(noisy, sigma), exact(noisy, sigma, std), 1e-9)
        assert denoiser.weight(sigma).equal(sigma**-2)


def test_the_range_of_the_variance_preserving_sde():
    denoiser = ContinuousVP(torch.nn.Identity(), (3,))
    # As EDM's code computes them: 1e-5 and 1 into its sigma(t), in float64.
    assert denoiser.sigma_min == pytest.approx(np.sqrt(np.expm1(9.95e-10 + 1e-6)))
    assert denoiser.sigma_max == pytest.approx(np.sqrt(np.expm1(10.05)))
    assert denoiser.time(torch.tensor([denoiser.sigma_max])).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vp", {"class_name": "Generator"}, r"holds Generator; expected one of EDMPrecond, "),
        ("vp", {"model_type": "UNet"}, r"network UNet: expected one of SongUNet, DhariwalUNet"),
        ("vp", {"num_blocks": 2}, r"holds other weights: missing enc\.8x8_block1"),
        ("vp", {"model_channels": 16}, r"expected torch.float32 \(16"),
        ("vp", {"model_channels": 10**9}, r"model_channels: input should be less than"),
        ("vp", {"model_channels": 2}, r"the network it describes cannot be built: "),
        ("vp", {"model_channels": 130}, r"the network it describes cannot be built: "),
        ("vp", {"model_type": ["SongUNet"]}, r"network \['SongUNet'\]: expected one of"),
        ("vp", {"channel_mult": [1] * 99}, r"channel_mult: "),
        ("vp", {"encoder_type": "resdual"}, r"encoder_type: input should be 'standard', 'skip'"),
        ("vp", {"chanel_mult": [1]}, r"chanel_mult: unknown key; did you mean channel_mult\?"),
        ("vp", {"img_resolution": ...}, r"img_resolution: missing"),
        ("vp", {"beta_d": 1e6}, r"sigma from .* to inf: expected two positive numbers that rise"),
        ("ve", {"sigma_min": 200.0}, r"sigma from 200.0 to 100.0: expected two positive numbers"),
        ("adm-edm", {"channel_mult": [2, 2]}, r"channel_mult\[0\]=2, expected 1, has no equal"),
        ("adm-edm", {"model_channels": 96}, r"widths \[96, 192\], expected multiples of 32 from"),
        ("adm-edm", {"model_channels": 160}, r"expected multiples of 64 where there is attention"),
    ],
)
def test_a_network_that_is_not_what_it_says(checkpoint, tmp_path, name, changes, message):
    path, _ = checkpoint(name, **changes)
    with pytest.raises(InstilError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["network.pkl"]


def tampered(change):
    def apply(golden):
        tensors = dict(golden.tensors)
        change(tensors)
        return tensors

    return apply


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vp", lambda t: t.pop("model.map_layer0.bias"), "missing map_layer0.bias"),
        ("vp", lambda t: t.update({"model.extra": torch.ones(1)}), "unexpected extra"),
        ("vp", lambda t: t.update({"extra": torch.ones(1)}), "extra: a weight outside the network"),
        (
            "vp",
            lambda t: t["model.map_layer0.bias"].fill_(float("nan")),
            "map_layer0.bias: holds values that are not finite",
        ),
        ("adm-edm", lambda t: t.update({"model.enc.9_x": torch.ones(1)}), "enc.9_x: not a weight"),
        (
            "adm-edm",
            lambda t: t.update({"model.dec.4x4_conv.bias": torch.ones(128)}),
            "dec.4x4_conv.bias: a weight that the file holds under another name",
        ),
        (
            "adm-edm",
            lambda t: t["model.enc.4x4_down.skip.resample_filter"].mul_(2),
            "an ADM network averages four pixels",
        ),
        ("adm-iddpm", lambda t: t.pop("u"), "u: expected the 1001 noise levels"),
        ("adm-iddpm", lambda t: t["u"].mul_(-1), "u: expected noise levels that fall"),
    ],
)
def test_weights_that_were_tampered_with(checkpoint, tmp_path, name, change, message):
    _, golden = checkpoint(name)
    path, _ = checkpoint(name, tensors=tampered(change)(golden))
    with pytest.raises(InstilError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_hold_no_network(tmp_path, persistent):
    for content in ({"G_ema": persistent("Generator")}, [1], {"ema": 3}):
        path = tmp_path / "file.pkl"
        path.write_bytes(pickle.dumps(content, 4))
        with pytest.raises(InstilError, match="holds no network named ema; expected one of EDM"):
            read_checkpoint(path)


def test_the_command_shows_the_licence_and_writes_the_card(checkpoint, tmp_path, capsys):
    path, golden = checkpoint("song-wide", file="edm-cifar10-32x32-cond-vp.pkl")
    out, table = tmp_path / "cifar10", tmp_path / "facts.json"
    assert main(["convert", str(path), "--out", str(out), "--json", str(table)]) == 0
    said = capsys.readouterr()
    assert "licence: cc-by-nc-sa-4.0, which students" in said.err
    assert "1.79 with 35 evaluations" in said.out
    facts = json.loads(table.read_text())
    assert facts["parameters"] == sum(
        tensor.numel() for name, tensor in golden.tensors.items() if "resample" not in name
    )
    assert facts["published as"].endswith("/edm-cifar10-32x32-cond-vp.pkl")
    assert load(str(out)).card.licence == "cc-by-nc-sa-4.0"
    assert "non-commercial" not in (out / "README.md").read_text()  # the licence's name says so
    assert main(["convert", str(path), "--out", str(out)]) == 2
    assert "exists already; name a new folder" in capsys.readouterr().err


def test_a_file_of_another_name_has_no_known_licence(checkpoint, tmp_path, capsys):
    path, _ = checkpoint("ve")
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "licence: unknown; if you know it" in capsys.readouterr().err
    assert load(str(tmp_path / "out")).card.licence == "unknown"


def test_the_published_files_are_listed_once():
    names = [name for files in PUBLISHED.values() for name in files]
    assert len(set(names)) == len(names) == 22


@pytest.mark.parametrize(
    "content",
    [
        b"hello, I am a text file\n",
        b"",
        b"PK\3\4",
        b"\x80\x04cposix\nsystem\n\x8c\x02ls\x85R.",
        b"\x80\x04cbuiltins\neval\n\x8c\x011\x85R.",
        b"\x80\x04\x8e" + b"\xff" * 8,
    ],
)
def test_wrong_files_give_one_sentence_and_exit_code_2(tmp_path, capsys, content):
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_source_text_that_would_write_to_disk_leaves_no_trace(persistent, tmp_path):
    golden = Golden(GOLDEN[NAMES.index("vp")])
    trace = tmp_path / "trace"
    source = f"open({str(trace)!r}, 'w').close()"
    network = persistent(golden.class_name, golden.tensors, golden.arguments, source)
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"ema": network}, 4))
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 0
    load(str(tmp_path / "out"))
    assert not trace.exists()
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*.*") if file.is_file()]
    assert len(written) == 4
    assert not any(str(trace).encode() in content for content in written)
    pickle.loads(path.read_bytes())  # what other readers do
    assert trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_d": ...}, "its scheduler names no 'beta_d'"),
        ({"beta_min": "small"}, "its scheduler holds values of another kind"),
        ({"_class_name": "ContinuousVF"}, "scheduler ContinuousVF is not supported"),
    ],
)
def test_a_folder_that_was_edited_badly(checkpoint, tmp_path, change, message):
    path, _ = checkpoint("vp")
    convert(path, tmp_path / "out")
    file = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    content = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    with pytest.raises(InstilError, match=message):
        load(str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["song-fourier-residual-skip-4", "edm-fp16"])
def test_autocast_and_the_compiler_understand_the_network(checkpoint, name):
    path, golden = checkpoint(name)
    denoiser = read_checkpoint(path).denoiser
    arguments = (golden.noisy, golden.sigma, golden.condition)
    with torch.no_grad():
        compiled = torch.compile(denoiser.network, backend="eager", fullgraph=True)
        time = golden.sigma.log() / 4
        close(compiled(golden.x, time, golden.label), golden.found["network"])
        with torch.autocast("cpu", torch.bfloat16):
            found = denoiser(*arguments)
    assert found.dtype == torch.float32
    close(found, golden.found["denoised"], 0.05)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("cifar10-edm-uncond", "song-positional-standard-standard-4"),
        ("cifar10-edm-cond", "edm-fp16"),
        pytest.param("imagenet64-edm", "adm-edm", marks=pytest.mark.slow),
    ],
)
def test_recipes_are_built_on_a_stand_in(checkpoint, tmp_path, capsys, recipe, name):
    text = named_recipes(ROOT / "distill" / "recipes")[recipe].read_text()
    assert text.startswith("# not yet run by us\n")
    path, golden = checkpoint(name)
    convert(path, tmp_path / "out")
    source = f"instructor={tmp_path / 'out'}"
    assert distill([recipe, source, "--dry-run", "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["samples"] == f"(3, 8, 8), {golden.arguments.get('label_dim', 0)} classes"
    assert plan["per update"].startswith("10 forward")
    # Without the folder, one sentence.
    assert distill([recipe, "--dry-run"]) == 2
    assert f"{recipe}: expected the folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("cifar10-edm-uncond", "song-positional-standard-skip-4"),
        ("cifar10-edm-cond", "edm-fp16"),
        ("cifar10-edm-cond", "vp"),
        ("cifar10-edm-uncond", "ve"),
        ("imagenet64-edm", "adm-edm"),
        ("imagenet64-edm", "adm-iddpm"),
    ],
)
def test_from_a_checkpoint_to_a_student_that_is_read_again(checkpoint, tmp_path, recipe, name):
    path, _ = checkpoint(name, file="edm-cifar10-32x32-cond-vp.pkl")
    convert(path, tmp_path / "out")
    words = [recipe, f"instructor={tmp_path / 'out'}", f"output={tmp_path / 'runs'}"]
    words += ["train={steps: 3, batch: 4, accumulation: 1, precision: 'no', averages: [0]}"]
    words += ["evaluation={extractor: null, instructor_steps: 2}", "optimizer.lr=1.0e-3"]
    assert distill(words) == 0
    folder = tmp_path / "runs" / recipe / "student"
    assert "license: cc-by-nc-sa-4.0" in (folder / "README.md").read_text()
    checkpoints = tmp_path / "runs" / recipe / "checkpoints"
    trained = load_file(checkpoints / "step-00000003" / "average-0.safetensors")
    if name.startswith("adm"):  # plain diffusers: the classes of its index are all its own
        index = json.loads((folder / "model_index.json").read_text())
        assert {part[0] for part in index.values() if isinstance(part, list)} == {"diffusers"}
        return
    instructor = load(str(folder))
    assert type(instructor.denoiser) is type(load(str(tmp_path / "out")).denoiser)
    student = OneStep(instructor.denoiser, 2.5)
    for key, tensor in student.state_dict().items():
        assert torch.equal(tensor, trained[key]), key
    changed = load(str(tmp_path / "out")).denoiser.state_dict()
    assert not torch.equal(
        changed["network.map_layer0.weight"], trained["denoiser.network.map_layer0.weight"]
    )
    usage = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    scope = {}
    exec(usage.replace('"student"', repr(str(folder))), scope)
    assert scope["images"].shape == (16, 3, 8, 8)
