"""What cannot be exported is refused before the first update, by every command alike."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, ScoreSdeVeScheduler

from distill.__main__ import main
from instil.base.errors import InstilError
from instructors.__main__ import main as instructors_main
from instructors.adapters.karras import Karras
from students.export import rehearse
from students.one_step import OneStep
from students.student import Student

CASES = {
    "classes under VE": (
        {"channels": 3, "classes": 3, "time_embedding_type": "fourier"},
        ScoreSdeVeScheduler,
        "no plain diffusers layout for a ScoreVE student with class labels",
    ),
    "one channel under VE": (
        {"channels": 1, "time_embedding_type": "fourier"},
        ScoreSdeVeScheduler,
        "ScoreSdeVePipeline does not draw the images (1, 8, 8)",
    ),
    "rectangles under EDM": (
        {"channels": 3, "sample_size": (8, 16)},
        EDMEulerScheduler,
        "ConsistencyModelPipeline does not draw the images (3, 8, 16)",
    ),
}


@pytest.fixture
def folder(unet, tmp_path):
    def make(settings, schedule):
        settings = dict(settings)
        network = unet(channels=settings.pop("channels"), classes=settings.pop("classes", None))
        network = type(network).from_config(
            {**network.config, **settings, "_use_default_values": []}
        )
        network.save_pretrained(tmp_path / "own" / "unet")
        schedule().save_pretrained(tmp_path / "own" / "scheduler")
        return tmp_path / "own"

    return make


@pytest.mark.parametrize("case", CASES)
def test_inspect_plan_and_run_refuse_alike(case, folder, tmp_path, capsys):
    settings, schedule, message = CASES[case]
    words = [f"instructor={folder(settings, schedule)}", f"output={tmp_path / 'runs'}"]
    words += ["digits", "evaluation.extractor=null", "evaluation.reference=instructor"]
    words += ["evaluation.held_out=null"]
    assert instructors_main(["inspect", str(tmp_path / "own")]) == 2
    said = [capsys.readouterr().err]
    for more in (["--dry-run"], []):
        assert main([*words, *more]) == 2
        said.append(capsys.readouterr().err)
    assert all(message in each for each in said), said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_rectangles_pass_where_the_pipeline_draws_them(unet, device, folder):
    from instructors.load import load

    where = folder({"channels": 3, "sample_size": (8, 16)}, DDPMScheduler)
    denoiser = load(str(where), weights=device == "cpu").denoiser
    before = {name: (t.shape, t.device) for name, t in denoiser.state_dict().items()}
    rehearse(OneStep(denoiser, 2.5))
    assert {name: (t.shape, t.device) for name, t in denoiser.state_dict().items()} == before


def test_a_pipeline_that_scales_otherwise_is_found_out(unet, monkeypatch):
    student = OneStep(Karras(unet(), (1, 8, 8)), 2.5)
    rehearse(student)
    monkeypatch.setattr(Karras, "start", lambda self, unit, sigma: 1.01 * sigma * unit)
    with pytest.raises(InstilError, match="they differ by"):
        rehearse(student)


def test_a_network_that_its_configuration_does_not_describe(unet):
    network = copy.deepcopy(unet())
    network.conv_out = torch.nn.Conv2d(8, 1, 1)
    with pytest.raises(InstilError, match=r"would be loaded with network.conv_out.weight"):
        rehearse(OneStep(Karras(network, (1, 8, 8)), 2.5))


def test_a_student_of_ones_own_without_a_layout_is_refused():
    class Own(Student):
        def prior(self, draws):
            return ()

        def forward(self, latent, condition=None):
            return torch.zeros(())

    with pytest.raises(InstilError, match="no layout for a Own student; derive its class"):
        rehearse(Own())
