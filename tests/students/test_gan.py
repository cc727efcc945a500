"""A generator of somebody's own: called as they call it, saved as they saved it, or refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from distill.__main__ import main as distil
from instil.base import data
from instil.base.average import Average
from instil.base.config import validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import class_labels
from instructors.load import load as load_instructor
from students.__main__ import main
from students.compatibility import class_order
from students.gan.generator import GAN
from students.gan.stylegan2 import StyleGAN2
from students.load import load
from students.source import Source

THEIRS = '''
import torch
from torch import nn

class Small(nn.Module):
    """8x8 grey images from z and a label, with batch normalisation and dropout."""
    def __init__(self, z_dim=6, num_classes=3, scale=1.0, side=8, form="index", kind="float"):
        super().__init__()
        self.z_dim, self.num_classes, self.form, self.kind = z_dim, num_classes, form, kind
        self.label = nn.Linear(num_classes, z_dim, bias=False)
        self.body = nn.Sequential(
            nn.Linear(z_dim, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(32, side * side), nn.Tanh() if scale > 0 else nn.Sigmoid(),
        )
        self.side = side

    def forward(self, z, label):
        if self.form == "index":
            label = torch.nn.functional.one_hot(label, self.num_classes).to(z.dtype)
        x = self.body(z + self.label(label)).view(-1, 1, self.side, self.side)
        if self.kind == "noisy":
            x = x + torch.randn_like(x)
        if self.kind == "random":
            x = x + torch.bernoulli(0.5 * torch.ones_like(x))
        return (127.5 * x + 127.5).to(torch.uint8) if self.kind == "bytes" else x

def broken():
    raise ValueError("needs a moon")
'''


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A module `their_code` beside the weights of one of its generators."""
    (tmp_path / "their_code.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "their_code", raising=False)
    import their_code  # ty: ignore

    torch.manual_seed(3)
    network = their_code.Small()
    network.train()(torch.randn(64, 6), torch.arange(64) % 3)  # statistics of its own
    save_file(network.state_dict(), tmp_path / "theirs.safetensors")
    return network.eval(), tmp_path / "theirs.safetensors"


@pytest.fixture
def instructor(unet, tmp_path):
    """The folder of a tiny random instructor of 8x8 grey images and three classes."""

    def build(name="instructor", **arguments):
        torch.manual_seed(0)
        pipeline = ConsistencyModelPipeline(
            unet(**({"classes": 3} | arguments)), EDMEulerScheduler()
        )
        pipeline.save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


def source(path, **settings):
    return validate(Source, {"weights": str(path), "factory": "their_code:Small"} | settings)


@pytest.mark.parametrize("form", ["index", "one_hot"])
@pytest.mark.parametrize("scaled", [False, True])
def test_images_are_the_networks_own(theirs, form, scaled):
    network, path = theirs
    given = {"range": [0, 1]} if scaled else {}
    student = load(source(path, arguments={"form": form}, labels=form, **given))
    assert (student.latent, student.classes, student.shape) == ((6,), 3, (1, 8, 8))
    draws = Draws.of_range(0, 0, 0, 9)
    (z,), condition = student.prior(draws), class_labels(3, draws.index)
    expected = network(z, condition["label"])
    found = student((z,), condition)
    torch.testing.assert_close(found, 2 * expected - 1 if scaled else expected)


def test_running_statistics_follow_are_averaged_and_saved_as_the_original_would(theirs, tmp_path):
    network, path = theirs
    student = load(source(path)).train()
    draws = Draws.of_range(0, 0, 0, 9)
    latent, condition = student.prior(draws), class_labels(3, draws.index)
    network.train()
    network.body[3].eval()
    expected = network(latent[0], condition["label"])
    torch.testing.assert_close(student(latent, condition), expected)  # no dropout
    average = Average(student, 1000)
    average.update(student, 1000, 10)
    average.module.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    network.load_state_dict(saved)  # their names, all of them
    assert torch.equal(saved["body.1.running_mean"], network.body[1].running_mean)
    assert saved["body.1.num_batches_tracked"] == 2


def test_a_folder_names_code_but_never_runs_it(theirs, tmp_path):
    _, path = theirs
    folder, trace = tmp_path / "saved", tmp_path / "trace"
    student = load(source(path))
    student.save_pretrained(folder)
    again = load(source(folder))
    seeds = range(5)
    assert torch.equal(again.sample(seeds), student.sample(seeds))
    config = json.loads((folder / "config.json").read_text())
    hostile = {"factory": "os:system", "arguments": {"command": f"touch {trace}"}}
    (folder / "config.json").write_text(json.dumps(config | hostile))
    with pytest.raises(InstilError, match=r"made by os:system; if you trust that code"):
        load(Source(weights=str(folder)))
    with pytest.raises(TypeError, match="factory"):
        GAN.from_pretrained(folder)
    with pytest.raises(InstilError, match=r"their_code:Small does not take"):
        load(source(folder))
    assert not trace.exists()


def test_plain_tensors_of_torch_are_read_and_nothing_else(theirs, tmp_path):
    network, path = theirs
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    torch.save({"g_ema": network.state_dict(), "step": 3}, tmp_path / "nested.pth")
    half = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    torch.save(half, tmp_path / "half.bin")
    torch.save(network, tmp_path / "module.pt")
    expected = load(source(path)).sample(range(4))
    assert torch.equal(load(source(tmp_path / "plain.pt")).sample(range(4)), expected)
    assert torch.equal(
        load(source(tmp_path / "nested.pth", key="g_ema")).sample(range(4)), expected
    )
    half = load(source(tmp_path / "half.bin")).sample(range(4))
    torch.testing.assert_close(half, expected, rtol=0, atol=0.01)
    assert torch.equal(load(source(tmp_path / "nested.pth")).sample(range(4)), expected)
    assert torch.equal(load(source(tmp_path / "module.pt")).sample(range(4)), expected)
    with pytest.raises(InstilError, match=r"holds no ema, but g_ema"):
        load(source(tmp_path / "nested.pth", key="ema"))


def test_loading_is_strict_but_for_the_names_the_user_ignores(theirs, tmp_path, capsys):
    network, _ = theirs
    state = network.state_dict()
    state["head.weight"] = torch.ones(2)
    state["label.weight"] = torch.ones(6, 5)
    del state["body.0.bias"]
    save_file(state, tmp_path / "other.safetensors")
    where = str(tmp_path / "other.safetensors")
    with pytest.raises(
        InstilError, match=r"missing body.0.bias; unexpected head.weight; label.wei"
    ):
        load(source(where))
    words = ["inspect", where, "factory=their_code:Small", "--json", str(tmp_path / "facts.json")]
    assert main(words) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["missing"] == ["body.0.bias"]
    assert facts["unexpected"] == ["head.weight"]
    assert facts["differing"] == ["label.weight"]
    assert len(facts["matched"]) == len(network.state_dict()) - 2
    assert (facts["kind"], facts["latent"], facts["classes"]) == ("GAN", "(6,)", 3)
    assert "body.0.bias" in capsys.readouterr().out
    student = load(source(where, ignore=["head.*", "label.weight", "body.0.bias"]))
    assert torch.equal(student.network.body[0].weight, network.body[0].weight)
    assert main(["inspect", where, "--json", str(tmp_path / "facts.json")]) == 0
    assert "head.weight (2,)" in json.loads((tmp_path / "facts.json").read_text())["tensors"]


@pytest.fixture
def refine(tmp_path, instructor):
    """Run a small refinement from the command line; returns the run's folder."""

    def run(*words, name="run", code=0):
        settings = ["digits-gan", f"instructor={instructor()}", f"output={tmp_path / 'runs'}"]
        settings += ["train.steps=3", "train.batch=9", "fake.warmup=2", "evaluation.extractor=null"]
        assert distil([*settings, f"name={name}", *words]) == code
        return tmp_path / "runs" / name

    return run


def test_one_gan_as_folder_and_as_factory_is_one_run(refine, tmp_path):
    arguments = {"resolution": 8, "channels": 1, "classes": 3, "z_dim": 8, "w_dim": 8}
    arguments |= {"mapping_layers": 2, "channel_base": 64, "channel_max": 8}
    torch.manual_seed(5)
    student = StyleGAN2(**arguments)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            weight.mul_(0.3 if name.endswith("torgb.weight") else 1)
    student.save_pretrained(tmp_path / "gan")
    folder = refine(f"student.weights={tmp_path / 'gan'}", "train.steps=20", name="folder")
    factory = refine(
        f"student.weights={tmp_path / 'gan' / 'model.safetensors'}",
        "student.factory=students.gan.stylegan2:StyleGAN2",
        f"student.arguments={json.dumps(arguments)}",
        "train.steps=20",
        name="factory",
    )
    one, two = (
        load_file(run / "checkpoints" / "step-00000020" / "student.safetensors")
        for run in (folder, factory)
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-5)
    start = load_file(tmp_path / "gan" / "model.safetensors")
    assert any((one[name] - value).abs().max() > 1e-3 for name, value in start.items())


def test_a_run_leaves_a_start_a_picture_of_both_and_a_folder_that_loads(
    refine, theirs, tmp_path, capsys
):
    _, path = theirs
    words = ["evaluation={samples: 40, seeds: 2, instructor_steps: 2, every: 1, quick_samples: 20}"]
    words += ["evaluation.extractor=digits", "evaluation.reference=digits:held-out"]
    words += ["evaluation.quick_reference=instructor", "evaluation.patience=2", "train.steps=9"]
    words += [
        f"student.weights={path}",
        "student.factory=their_code:Small",
        "optimizer={lr: 0.5, warmup: 0}",
    ]
    run = refine(*words)
    report = json.loads((run / "report.json").read_text())
    assert report["start"].keys() == report["student"].keys() - {"average", "step"}
    # At that rate nothing gets better: it stopped after two looks and ships the start.
    assert report["student"]["step"] == 0
    assert report["student"]["fd"] == report["start"]["fd"]
    assert not (run / "checkpoints" / "step-00000009").exists()
    assert (run / "checkpoints" / "step-00000002").exists()
    one, two = load_file(path), load_file(run / "student" / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    picture = Image.open(run / "samples" / "before-after.png")
    assert picture.width == 4 * (2 * (10 * 9 - 1) + 4)
    assert "start" in capsys.readouterr().out
    card = (run / "student" / "README.md").read_text()
    assert "its licence holds as well" in card
    assert 'factory="their_code:Small"' in card


def test_a_resumed_run_remembers_its_best(refine, theirs):
    words = [f"student.weights={theirs[1]}", "student.factory=their_code:Small", "save_every=1"]
    words += [
        "evaluation={samples: 40, seeds: 1, instructor_steps: 2, every: 1, quick_samples: 20}"
    ]
    words += ["evaluation.extractor=digits", "evaluation.reference=instructor"]
    words += ["evaluation.patience=9"]
    whole = refine(*words, "train.steps=4", name="whole")
    refine(*words, "train.steps=2", name="parts")
    parts = refine(*words, "train.steps=4", "--resume", name="parts")
    one, two = (json.loads((run / "report.json").read_text()) for run in (whole, parts))
    assert one["student"]["step"] == two["student"]["step"]
    for who in ("start", "student"):
        assert one[who]["fd"]["mean"] == pytest.approx(two[who]["fd"]["mean"], rel=1e-6)
    one, two = (load_file(run / "student" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_image_k_depends_on_seed_k_alone(theirs, tmp_path):
    path = str(theirs[1])
    words = ["sample", path, "factory=their_code:Small", "--grid"]
    assert main([*words, str(tmp_path / "many.png"), "--seeds", "0-8"]) == 0
    assert main([*words, str(tmp_path / "one.png"), "--seeds", "4", "--labels", "1"]) == 0
    many, one = (Image.open(tmp_path / f"{name}.png") for name in ("many", "one"))
    left = top = 4 * 9  # the middle of three rows and columns
    cut = many.crop((left, top, left + 32, top + 32))
    assert one.size == (32, 32)
    assert np.array_equal(cut, one)
    assert len(np.unique(one)) > 10
    assert main([*words[:-1], "--images", str(tmp_path / "some.npz"), "--seeds", "2,4"]) == 0
    some = data.load(str(tmp_path / "some.npz"))
    assert some.shape == (1, 8, 8)
    assert some.classes == ("1", "2")  # of the seeds 4 and 2
    grey = torch.from_numpy(np.array(one))[::4, ::4, 0]
    assert torch.equal(some.pixels[1, 0], grey)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to write; give --grid"),
        (["--grid", "x.png", "--seeds", "3-x"], "'3-x' is not of the form 0-63"),
        (["--grid", "x.png", "--seeds", "0-3", "--labels", "1"], "1 of them for 4 seeds"),
        (["--grid", "x.png", "--seeds", "0", "--labels", "3"], "1 class numbers below 3"),
        (["--grid", "x.png", "--seeds", "²"], "'²' is not of the form 0-63"),
        (["--grid", "x.png", "--seeds", "5-3"], "5-3 must rise"),
        (["--grid", "x.png", "--seeds", "0-99999999999"], "at most 1,000,000 numbers"),
        (["--grid", "x.png", "--seeds", "9" * 30], "is not of the form 0-63"),
        (["--grid", "x.jpg"], "--grid x.jpg: expected a file ending in .png"),
        (["--images", "x.png"], "--images x.png: expected a file ending in .npz"),
        (["--images", "nowhere/x.npz"], "there is no folder nowhere; make it first"),
        (["--grid", "x.png", "--json", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_sample_says_what_is_wrong(theirs, capsys, words, message):
    assert main(["sample", str(theirs[1]), "factory=their_code:Small", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_pickle_is_converted_inspected_refined_and_sampled(
    refine, instructor, persistent, tmp_path
):
    arguments = {"z_dim": 8, "c_dim": 3, "w_dim": 8, "img_resolution": 8, "img_channels": 1}
    arguments |= {
        "mapping_kwargs": {"num_layers": 2},
        "synthesis_kwargs": {"channel_base": 64, "channel_max": 8, "num_fp16_res": 0},
    }
    torch.manual_seed(5)
    student = StyleGAN2.from_original(arguments)
    with torch.no_grad():
        student.synthesis.b8.torgb.weight.mul_(0.3)
        student.synthesis.b4.torgb.weight.mul_(0.3)
    content = {"G_ema": persistent("Generator", student.state_dict(), arguments), "D": None}
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps(content))
    assert main(["convert", str(file)]) == 0
    assert main(["convert", str(file)]) == 2  # never overwritten
    folder = str(tmp_path / "network")
    assert main(["inspect", folder, "--json", str(tmp_path / "facts.json")]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["kind"], facts["missing"], facts["unexpected"]) == ("StyleGAN2", [], [])
    run = refine(f"student.weights={folder}")
    grid = tmp_path / "out.png"
    assert main(["sample", str(run / "student"), "--seeds", "0-3", "--grid", str(grid)]) == 0
    assert Image.open(grid).size == (4 * 17, 4 * 17)
    direct = load(Source(weights=str(file)))
    assert torch.equal(direct.sample(range(3)), student.sample(range(3)))


def test_the_order_of_the_classes_is_asked_of_the_instructor(tmp_path, capsys):
    student, denoiser = load(Source(weights="digits-gan-half")), load_instructor("digits").denoiser
    assert class_order(student, denoiser) == list(range(10))
    with torch.no_grad():
        student.mapping.embed.weight.copy_(student.mapping.embed.weight.roll(1, 1))
    # The column of class 0 is now that of 9: its class k looks like k - 1.
    assert class_order(student, denoiser) == [9, *range(9)]
    student.save_pretrained(tmp_path / "rolled")
    words = ["digits-gan", f"student.weights={tmp_path / 'rolled'}", "evaluation.extractor=null"]
    assert distil([*words, f"output={tmp_path / 'runs'}"]) == 2
    assert "its class 0 looks like class 9" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def hostile(tmp_path, persistent):
    class Attack:
        def __reduce__(self):
            return eval, ("1",)

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"G_ema": Attack()}, protocol=4))


def discriminator(tmp_path, persistent):
    made = persistent("Discriminator", {"b4.weight": torch.ones(2)}, {"c_dim": 0})
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"D": made, "G_ema": made}))


def missing(tmp_path, persistent):
    state = load_file(tmp_path / "theirs.safetensors")
    del state["body.0.bias"]
    save_file(state, tmp_path / "theirs.safetensors")


def not_numbers(tmp_path, persistent):
    state = load_file(tmp_path / "theirs.safetensors")
    state["body.0.bias"] /= 0
    save_file(state, tmp_path / "theirs.safetensors")


WRONG = {
    "hostile pickle": (hostile, ["weights=bad.pkl"], "asks for the global builtins.eval"),
    "discriminator": (
        discriminator,
        ["weights=bad.pkl"],
        "holds a Discriminator, expected a Generator",
    ),
    "z dimension": (None, ["latent=[7]"], "their_code:Small: cannot be called with z (2, 7)"),
    "uint8 images": (None, ["arguments={kind: bytes}"], "makes torch.uint8 images"),
    "range": (
        None,
        ["arguments={scale: -1.0}"],
        "the instructor's [-1, 1]; say the range of its black and white, such as range=[0,1]",
    ),
    "missing keys": (missing, [], "holds other weights: missing body.0.bias"),
    "label count": (None, ["instructor=ten"], "has 3 class labels, the instructor 10"),
    "NaN weights": (not_numbers, [], "values that are not finite in body.0.bias"),
    "resolution": (
        None,
        ["instructor=large"],
        "makes images of the shape (1, 8, 8), the instructor (1, 16, 16)",
    ),
    "factory": (None, ["factory=their_cod:Small"], "their_cod:Small: there is no module their_cod"),
    "no factory": (None, ["factory=null"], "holds tensors alone; give factory="),
    "arguments": (None, ["arguments={depth: 3}"], "their_code:Small does not take {'depth': 3}"),
    "broken factory": (
        None,
        ["factory=their_code:broken"],
        "line 28 (ValueError: needs a moon)",
    ),
    "random network": (None, ["arguments={kind: random}"], "two images of one z differ"),
    "typo in ignore": (None, ["ignore=[boddy.*]"], "no tensor is called boddy.*"),
    "nothing there": (None, ["weights=nowhere"], "nowhere: expected a folder, a .safetensors"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_one_sentence_and_leave_nothing(
    refine, instructor, theirs, persistent, tmp_path, capsys, monkeypatch, case
):
    prepare, words, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    instructor("ten", classes=10)
    instructor("large", size=16)
    if prepare:
        prepare(tmp_path, persistent)
    given = {"weights": str(theirs[1]), "factory": "their_code:Small"}
    if "pkl" in " ".join(words):
        del given["factory"]
    settings = [f"student.{key}={value}" for key, value in given.items()]
    settings += [w if w.startswith("instructor") else f"student.{w}" for w in words]
    run = refine(*settings, code=2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not run.exists()
