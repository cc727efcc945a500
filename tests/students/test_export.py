"""Plain diffusers samples the student in one step, without this package."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from instil.base.errors import InstilError
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.karras import Karras
from instructors.denoiser import class_labels
from students.export import export
from students.one_step import OneStep

CARD = {"instructor": "x", "licence": "apache-2.0", "recipe": "a: 1\n", "figures": {"NFE": "1"}}

PLAIN = """
import json, sys
for name in ("instil", "instructors", "students", "eval", "distill"):
    sys.modules[name] = None  # importing it fails
import numpy as np, torch
from diffusers import DiffusionPipeline
folder, out, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
labels = {"class_labels": torch.arange(6) % classes} if classes else {}
images = pipeline(batch_size=6, num_inference_steps=1, output_type="np",
                  generator=torch.Generator().manual_seed(5), **labels).images
np.save(out, images)
"""


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("kind", ["edm", "epsilon", "v_prediction", "sample"])
def test_plain_diffusers_makes_the_same_pixels(unet, tmp_path, python, kind, classes):
    network = unet(channels=1, classes=classes or None)
    with torch.no_grad():
        for parameter in network.parameters():  # random outputs of a visible size
            parameter.mul_(1.5)
    if kind == "edm":
        denoiser = Karras(network, (1, 8, 8), classes=classes)
    else:
        schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
        denoiser = DiscreteVP(network, (1, 8, 8), schedule, kind, classes)
    student = OneStep(denoiser, 2.5).eval()
    folder, out = tmp_path / "student", tmp_path / "images.npy"
    export(student, folder, CARD)
    python("-c", PLAIN, folder, out, classes, cwd=tmp_path)
    theirs = torch.from_numpy(np.load(out)).permute(0, 3, 1, 2)
    unit = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = student((unit,), class_labels(classes, torch.arange(6)))
    ours = (ours / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5)


def test_the_card_says_where_the_student_comes_from(unet, tmp_path):
    export(OneStep(Karras(unet(), (1, 8, 8)), 2.5), tmp_path / "student", CARD)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Distilled without data from `x`" in card
    assert "num_inference_steps=1" in card
    index = json.loads((tmp_path / "student" / "model_index.json").read_text())
    assert {part[0] for part in index.values() if isinstance(part, list)} == {"diffusers"}


def test_a_start_outside_the_range_is_refused(unet):
    with pytest.raises(InstilError, match=r"student.sigma: 100 lies outside"):
        OneStep(Karras(unet(), (1, 8, 8)), 100)
