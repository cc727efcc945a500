"""The evaluator, before any number is believed."""

import json
import re

import numpy as np
import pytest
import torch
import torch_fidelity

from eval.__main__ import main
from eval.quality import features, metrics
from eval.quality.evaluation import Evaluation
from eval.quality.evaluator import Evaluator
from eval.quality.images import batches, generate, instructor_sampler, student_sampler
from instil.base import data
from instil.base.errors import InstilError
from instructors.load import load
from students.one_step import OneStep
from tests.tools import ranks


@pytest.fixture(scope="module")
def extractor():
    return features.load("digits")


@pytest.fixture(scope="module")
def reference(extractor):
    return metrics.reference_of(data.load("digits"), extractor)


def blurred(pixels):
    images = data.to_float(pixels)
    return data.to_uint8(torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False))


def noisy(pixels, sigma):
    return data.to_uint8(data.to_float(pixels) + sigma * torch.randn(pixels.shape))


@pytest.mark.slow
def test_the_distance_ranks_what_is_known_to_be_worse(reference):
    sampler = instructor_sampler(load("digits").denoiser, 10)
    training, distances = data.load("digits").pixels[torch.randperm(1198)[:100]], []
    for seed in range(3):
        pixels = generate(sampler, seed * 1500, 1500)
        labels = torch.arange(1500) % 10
        memorised = training[torch.randint(100, (1500,))]
        sets = {
            "instructor": pixels,
            "noise 0.1": noisy(pixels, 0.1),
            "noise 0.3": noisy(pixels, 0.3),
            "two classes missing": pixels[labels < 8],
            "100 memorised images": memorised,
            "blur": blurred(pixels),
        }
        distances.append([metrics.distance(each, reference) for each in sets.values()])
        if seed == 0:
            found = {name: metrics.measure(each, reference) for name, each in sets.items()}
    table = dict(zip(sets, np.array(distances).T, strict=True))
    middle = ("noise 0.3", "two classes missing", "100 memorised images")
    pairs = [("instructor", "noise 0.1"), *[("noise 0.1", worse) for worse in middle]]
    for better, worse in [*pairs, *[(each, "blur") for each in middle]]:
        step = table[worse] - table[better]
        assert step.mean() > 3 * step.std(ddof=1), (better, worse, table)
    assert found["100 memorised images"]["copies"] == 1.0
    assert found["instructor"]["copies"] < 0.01
    assert found["100 memorised images"]["recall"] < 0.5 * found["instructor"]["recall"]
    assert found["two classes missing"]["class_tv"] > 5 * found["instructor"]["class_tv"]
    assert found["blur"]["precision"] < 0.5 * found["instructor"]["precision"]


def register(source):
    """Make an offline extractor known to torch-fidelity; returns the name it has there.

    The name holds the hash of the weights, since torch-fidelity's caches know extractors by name.
    """
    extractor = features.load(source)
    name = extractor.name.lower()

    class Registered(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **options):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

        def forward(self, input):  # noqa: A002, theirs
            found = dict(zip(("features", "logits"), extractor.forward(input), strict=True))
            return tuple(found[key] for key in self.features_list)

    if name not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, Registered)
    return name


def test_figures_are_torch_fidelitys_own(extractor, reference, tmp_path):
    """Through the registry and `calculate_metrics`, on features that need no scaling of ours."""
    images = data.load("digits:held-out").pixels
    plain = features.Extractor(extractor.name, False, extractor.forward)
    ours = metrics.measure(images, metrics.reference_of(data.load("digits"), plain))

    class Tensors(torch.utils.data.Dataset):
        def __init__(self, pixels):
            self.pixels = pixels

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, number):
            return self.pixels[number]

    theirs = torch_fidelity.calculate_metrics(
        input1=Tensors(images),
        input2=Tensors(data.load("digits").pixels),
        feature_extractor=register("digits"),
        fid=True,
        isc=True,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    assert ours["fd"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert register("digits") == extractor.name.lower()  # twice is no fault


@pytest.mark.slow
@pytest.mark.parametrize("what", ["--instructor=digits", "--images=digits:held-out"])
def test_two_processes_measure_what_one_does(what, tmp_path, monkeypatch, capsys):
    words = ["fid", what, "--reference=digits", "--extractor=digits", "--samples=600"]
    words += ["--seeds=2", "--steps=3"]
    assert main([*words, "--json", str(tmp_path / "one.json")]) == 0
    alone = capsys.readouterr().out
    # else the figures would be read from the first
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "other"))
    said = ranks.run("eval.__main__", [*words, "--json", str(tmp_path / "two.json")])
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for facts in (one, two):
        facts.pop("command")
        facts.pop("environment")
    assert one == two
    title = one["protocol"].split(",")[0]
    assert said.count(title) == alone.count(title)


def test_other_commands_are_not_shared(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["latents", "--source", "digits", "--target", "digits"]) == 2
    assert "eval latents: runs in one process only" in capsys.readouterr().err


def test_a_reference_is_at_no_distance_from_itself(reference):
    found = metrics.measure(data.load("digits").pixels, reference)
    assert found["fd"] == pytest.approx(0, abs=1e-6)
    assert found["precision"] == found["recall"] == found["copies"] == 1
    assert found["class_tv"] == 0


def test_frechet_distance_of_known_gaussians():
    first = {"mu": np.zeros(2), "sigma": np.diag([1.0, 4.0])}
    second = {"mu": np.array([3.0, 0.0]), "sigma": np.diag([4.0, 1.0])}
    assert metrics.frechet(first, second) == pytest.approx(9 + 1 + 1)


def test_dead_features_are_dropped():
    pixels = torch.randint(0, 256, (50, 1, 2, 2), dtype=torch.uint8)

    def forward(x):
        flat = x.flatten(1).float()
        return torch.cat([flat, torch.zeros(len(x), 1)], dim=1), flat[:, :2]

    reference = metrics.reference_of(
        data.Images(pixels, None, (), "random"), features.Extractor("FD-x", True, forward)
    )
    assert reference.values.shape == (50, 4)
    torch.testing.assert_close(reference.values.std(0), torch.ones(4))
    assert np.isfinite(metrics.distance(pixels, reference))


def test_conditional_accuracy_counts_what_was_asked_for(reference):
    images = data.load("digits:held-out")
    right = metrics.measure(images.pixels, reference, images.labels)["label_accuracy"]
    wrong = metrics.measure(images.pixels, reference, (images.labels + 1) % 10)["label_accuracy"]
    assert right > 0.95
    assert wrong < 0.05


def test_image_k_depends_on_k_alone():
    sampler = student_sampler(OneStep(load("digits").denoiser, 2.5))
    whole = torch.cat(list(batches(sampler, 0, 30, batch=30)))
    parts = torch.cat(list(batches(sampler, 10, 20, batch=7)))
    torch.testing.assert_close(whole[10:], parts, rtol=1e-5, atol=1e-5)


def test_statistics_are_a_reference_for_inception_only(tmp_path, extractor):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(InstilError, match="published statistics are Inception's"):
        metrics.load_reference(str(path), extractor)
    inception = features.Extractor("FID", False, extractor.forward)
    assert metrics.load_reference(str(path), inception).values is None
    np.savez(path, mu=np.zeros(10), sigma=np.eye(10))
    with pytest.raises(InstilError, match=r"expected mu \(2048,\)"):
        metrics.load_reference(str(path), inception)


@pytest.mark.slow
def test_a_trained_extractor_is_registered_by_its_weights(tmp_path):
    path = tmp_path / "mine.safetensors"
    images = data.load("digits:extractor:0-2")
    words = "extractor --data digits:extractor:0-2 --held-out digits:held-out:0-2 --seed 3"
    assert main([*words.split(), "--out", str(path), "--json", str(tmp_path / "facts.json")]) == 0
    extractor = features.load(str(path))
    assert extractor.name.startswith("FD-mine-")
    found, logits = extractor(images.pixels)
    assert (logits.argmax(1) == images.labels).double().mean() > 0.97
    assert found.shape == (len(images), 64)
    with pytest.raises(InstilError, match=r"made for images of the shape \(1, 8, 8\)"):
        extractor(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_the_instructors_own_figures_are_computed_once(monkeypatch, extractor):
    evaluation = Evaluation(
        extractor="digits", reference="instructor", samples=100, seeds=2, instructor_steps=2
    )
    evaluator = Evaluator(evaluation, load("digits"), torch.device("cpu"))
    first = evaluator.instructor_figures()
    assert first["fd"]["n"] == 100
    floor = evaluator.floor()
    assert floor["floor_n"] == 100
    monkeypatch.setattr(evaluator, "score", None)  # would fail if called again
    again = Evaluator(evaluation, load("digits"), torch.device("cpu"))
    monkeypatch.setattr(again, "score", None)
    assert again.instructor_figures() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "digits", "--reference", "nope"], "nope: no such file"),
        (["--images", "nope", "--reference", "digits"], "nope: no such file"),
        (["--images", "digits", "--reference", "digits", "--extractor", "vgg"], "extractor vgg"),
        (
            ["--images", "digits", "--reference", "digits", "--weights", "/nope"],
            "extractor digits|weights /nope",
        ),
        (["--instructor", "nope", "--reference", "digits"], "nope: expected the folder"),
        (["--images", "digits", "--reference", "digits", "--record"], "give --instructor"),
        (["--instructor", "digits", "--reference", "digits", "--samples", "1"], "samples"),
        (
            ["--images", "digits", "--reference", "digits", "--json", "nowhere/x.json"],
            "--json nowhere/x.json: there is no folder nowhere",
        ),
        (
            ["--instructor", "digits", "--reference", "digits:nine"],
            "'nine' is no class",
        ),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    extractor = [] if "--extractor" in arguments else ["--extractor", "digits"]
    assert main(["fid", *arguments, *extractor]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_missing_inception_weights_are_explained(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert main(["fid", "--images", "digits", "--reference", "digits"]) == 2
    assert "--weights" in capsys.readouterr().err
    arguments = ["--images", "digits", "--reference", "digits", "--weights", "/nope.pth"]
    assert main(["fid", *arguments]) == 2
    assert "/nope.pth: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--imagez=digits", "--image=digits", "--sample=3"])
def test_misspelt_options_are_refused(option):
    with pytest.raises(SystemExit) as stop:
        main(["fid", "--images", "digits", "--reference", "digits", option])
    assert stop.value.code == 2
