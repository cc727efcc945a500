"""Networks of the user's own are the exact denoisers that they were trained to be."""

import copy

import pytest
import torch
from torch import nn

from distill.build import full_copy
from instil.base.errors import InstilError
from instructors.__main__ import main
from instructors.adapters.own import OwnNetwork
from instructors.analytic import gaussian
from instructors.denoiser import Condition, Denoiser
from instructors.load import load
from students.export import export
from students.few_step import FewStep
from students.load import load as load_student
from students.source import Source

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.3, 0.2]], dtype=torch.float64)
LAW = gaussian(MEAN, ROOT @ ROOT.T)  # of images in [-1, 1]
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHAS = (1 - BETAS).cumprod(0)
SD = 0.5


def arctangent(sigma):
    """The times of v-diffusion."""
    return sigma.atan() * 2 / torch.pi, (1 + sigma**2).rsqrt()


# Per time: the network's sigma from its time, and the scales of image and noise in its input.
CLOCKS = {
    "data at 1": lambda t: ((1 - t) / t, t),
    "noise at 1": lambda t: (t / (1 - t), 1 - t),
    "sigma": lambda t: (t, torch.ones_like(t)),
    "log sigma / 4": lambda t: ((4 * t).exp(), ((4 * t).exp() ** 2 + SD**2) ** -0.5),
    "betas": lambda t: (((1 - ALPHAS[t]) / ALPHAS[t]).sqrt(), ALPHAS[t].sqrt()),
    "function": lambda t: ((t * torch.pi / 2).tan(), (t * torch.pi / 2).cos()),
}
GIVEN = {"betas": BETAS, "function": arctangent}
DEFINED = [
    *(("x", time) for time in CLOCKS),
    *(("noise", time) for time in CLOCKS),
    ("velocity", "data at 1"),
    ("velocity", "noise at 1"),
    ("v", "betas"),
    ("v", "function"),
    ("F", "log sigma / 4"),
]


class Oracle(nn.Module):
    """What perfect training would give, from the definition of each prediction."""

    def __init__(self, predicts, time, low, high):
        super().__init__()
        self.predicts, self.time = predicts, time
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.own = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, given, time):
        s, a = (each[:, None] for each in CLOCKS[self.time](time))
        noisy = given / a
        clean = LAW((noisy - self.middle) / self.half, s[:, 0] / self.half)
        clean = self.middle + self.half * clean
        noise = (noisy - clean) / s
        skip = SD**2 / (s**2 + SD**2)
        return {
            "x": clean,
            "noise": noise,
            "velocity": clean - noise if self.time == "data at 1" else noise - clean,
            "v": a * noise - a * s * clean,
            "F": (clean - skip * noisy) * (s**2 + SD**2) ** 0.5 / (s * SD),
        }[self.predicts]


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize(("predicts", "time"), DEFINED)
def test_every_parameterisation_gives_the_exact_denoiser(predicts, time, limits):
    network = Oracle(predicts, time, *limits)
    denoiser = Denoiser.of(
        network, (3,), predicts=predicts, time=GIVEN.get(time, time), range=limits
    ).double()
    sigma = torch.logspace(-1.5, 1.5, 7, dtype=torch.float64)
    if time == "betas":
        sigma = CLOCKS["betas"](torch.tensor([0, 1, 10, 300, 700, 990, 999]))[0] / network.half
        torch.testing.assert_close(denoiser.round_sigma(sigma * 1.001), sigma, rtol=1e-6, atol=0)
    noisy = MEAN + (1 + sigma[:, None]) * torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(noisy, sigma), LAW(noisy, sigma), rtol=1e-7, atol=1e-7)
    # Under its weight, an error e of the raw output costs e**2 at every level; x is bounded.
    with torch.no_grad():
        network.register_forward_hook(lambda module, given, output: output + 0.1)
        error = (denoiser(noisy, sigma) - LAW(noisy, sigma)).square()[:, 0]
    cost = denoiser.weight(sigma) * error / 0.01
    if predicts == "x":
        assert denoiser.weight(sigma).min() >= 1
        assert denoiser.weight(sigma).max() <= 5
    else:
        torch.testing.assert_close(cost, torch.ones_like(cost), rtol=1e-4, atol=0)


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def forward(self, noisy, time, label):
        return noisy * time[:, None] + self.table(label)


def test_labels_guidance_and_copies():
    denoiser = OwnNetwork(Labelled(), (3,), "x", "data at 1", (0, 1), classes=3, null_label=3)
    assert (denoiser.classes, denoiser.null(2)["label"].tolist()) == (3, [3, 3])
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.02, 200.0)
    noisy, sigma, label = torch.randn(2, 3), torch.tensor([0.5, 2.0]), torch.tensor([0, 2])
    expected = denoiser(noisy, sigma, Condition(label=label))
    copied = copy.deepcopy(denoiser.base())
    assert torch.equal(copied(noisy, sigma, Condition(label=label)), expected)
    assert list(copied.state_dict()) == ["network.table.weight"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"predicts": "score"}, "predicts: 'score'; expected one of x, noise"),
        ({"time": "t"}, "time: 't'; expected one of 'data at 1', .* a function of sigma"),
        ({"predicts": "velocity", "time": "sigma"}, "velocity is not defined for the time 'sigma'"),
        ({"predicts": "v", "time": "sigma"}, "expected time to be one of 'betas', or a function"),
        ({"range": (1, 0)}, "range: 1 to 0; expected black below white"),
        ({"null_label": 2}, "null_label: 2 is one of 3 classes"),
        ({"time": torch.zeros(5)}, "noise levels do not rise"),
        ({"classes": 0}, r"network: cannot be called with a batch \(2, 3\), times \(2,\) \("),
        ({"shape": (1, 1)}, r"network: gives \(2, 1, 3\) for a batch \(2, 1, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    given = {"shape": (3,), "predicts": "x", "time": "data at 1", "classes": 3} | changed
    with pytest.raises(InstilError, match=message):
        OwnNetwork(Labelled(), **given)


FACTORY = """
import torch
from instructors.denoiser import Denoiser

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, noisy, time):
        return self.layer(noisy) * time[:, None, None, None]

def make():
    torch.manual_seed(0)
    return Denoiser.of(Network(), (1, 8, 8), predicts="x", time="data at 1", range=(0, 1))
"""


def test_a_factory_is_loaded_copied_exported_and_loaded_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "stranger.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    instructor = load("stranger:make")
    assert instructor.card == load("stranger:make").card
    assert not any(p.requires_grad for p in instructor.denoiser.parameters())
    assert main(["inspect", "stranger:make"]) == 0
    assert "OwnNetwork" in capsys.readouterr().out
    shapes = load("stranger:make", weights=False).denoiser
    assert all(p.is_meta for p in shapes.parameters())
    student = FewStep(full_copy(instructor.denoiser), [5.0, 1.0])
    nn.init.ones_(student.denoiser.network.layer.weight)
    card = {"instructor": "stranger:make", "licence": "mit", "recipe": "a: 1\n", "figures": {}}
    export(student, tmp_path / "student", card)
    assert 'factory="stranger:make"' in (tmp_path / "student" / "README.md").read_text()
    source = Source(weights=str(tmp_path / "student"), factory="stranger:make")
    assert torch.equal(load_student(source).sample(range(4)), student.sample(range(4)))
    with pytest.raises(InstilError, match="made by stranger:make; if you trust that code"):
        load_student(source.replace(factory=None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strange:absent", "strange has no absent"),
        ("strange:number", "returns a int; expected a Denoiser"),
        ("strange:broken", r"strange:broken: fails \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_factories_that_make_no_instructor(name, message, tmp_path, monkeypatch):
    code = "def number():\n    return 1\n\ndef broken():\n    return 1 / 0\n"
    (tmp_path / "strange.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InstilError, match=message):
        load(name)
