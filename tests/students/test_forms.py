"""Networks and weight files as people have them: the student's images are the network's own."""

import pytest
import torch

from instil.base.config import validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import class_labels
from students.compatibility import check_saved
from students.load import load
from students.source import Source
from tests.students import forms

FORMS = "tests.students.forms"


def student_of(path, factory, **settings):
    return load(validate(Source, {"weights": str(path), "factory": factory} | settings))


def trained(kind):
    """A network with statistics of its own."""
    torch.manual_seed(1)
    with torch.random.fork_rng():
        network = kind() if kind is not forms.OnGpu else forms.Net()
    for module in network.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_()
    return network.eval()


@pytest.mark.parametrize("words", forms.CALLS)
def test_a_network_is_called_as_its_own_code_calls_it(tmp_path, words):
    kind, settings, by_hand = forms.CALLS[words]
    network = trained(kind)
    torch.save(network.state_dict(), tmp_path / "weights")
    student = student_of(tmp_path / "weights", f"{FORMS}:{kind.__name__}", **settings)
    if kind is forms.Constant:
        network.texture = student.network.texture.clone()
    draws = Draws.of_range(0, 0, 0, 5)
    latent, condition = student.prior(draws), class_labels(student.classes, draws.index)
    assert student.shape == (1, 8, 8)
    with torch.no_grad():
        expected = by_hand(network, *latent, *condition.values())
        images = student(latent, condition)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    student.save_pretrained(tmp_path / "saved")
    check_saved(student, tmp_path / "saved", factory=student.factory)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("words", forms.FILES)
def test_weights_are_found_where_they_lie(tmp_path, words, legacy):
    name, saved, settings = forms.FILES[words]
    network, z = trained(forms.Net), torch.randn(5, 16)
    torch.save(saved(network), tmp_path / name, _use_new_zipfile_serialization=not legacy)
    student = student_of(tmp_path / name, f"{forms.__file__}:Net", **settings)
    with torch.no_grad():
        torch.testing.assert_close(student((z,)), network(z), rtol=0, atol=1e-2)
        assert torch.equal(student((z,)), network(z)) == (words != "float16")


def test_the_documented_table_is_the_tests_own():
    assert forms.table() in forms.PAGE.read_text(encoding="utf-8")


class Hostile:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_objects_beside_the_tensors_are_named_and_never_run(tmp_path, capsys):
    network = trained(forms.Net)
    torch.save({"g": network.state_dict(), "x": Hostile()}, tmp_path / "a.pt")
    student = student_of(tmp_path / "a.pt", f"{FORMS}:Net")
    assert torch.equal(student.network.last.weight, network.last.weight)
    assert "left aside, unread: __builtin__.eval" in capsys.readouterr().err


def test_laws_of_z(tmp_path):
    torch.save(trained(forms.Net).state_dict(), tmp_path / "a.pt")
    draws = Draws.of_range(0, 0, 0, 4000)
    path = tmp_path / "a.pt"
    (uniform,) = student_of(path, f"{FORMS}:Net", prior="uniform").prior(draws)
    assert uniform.abs().max() < 1
    assert uniform.var().item() == pytest.approx(1 / 3, rel=0.02)
    (z,) = student_of(path, f"{FORMS}:Net", truncation=0.5).prior(draws)
    assert 0.99 < z.abs().max() <= 1  # two standard deviations, times a half
    assert z.var().item() == pytest.approx(0.25 * 0.7737, rel=0.02)  # scipy.stats.truncnorm(-2, 2)


SOURCE = """
import torch
from torch import nn
from tests.students.forms import Net, Numbers
class Half(Net):
    def forward(self, z): return {"a": 1}["b"]
class Rounded(Net):
    def forward(self, z): return self.image(z).to(torch.uint8)
class Several(Net):
    def forward(self, z): return self.image(z), self.image(z)
class Shared(Net):
    def forward(self, z): return self.image(z) + torch.randn(1, 8, 8)
class Forgetful(Net):
    def __init__(self):
        super().__init__()
        self.texture = torch.randn(8, 8)
    def forward(self, z): return self.image(z) + self.texture
class Either(Numbers):
    def forward(self, z, y): return self.image(torch.cat([z, z], 1))
def asserts(): assert False, "bad config"
def exits(): raise SystemExit(2)
"""
WRONG = {
    "own:Half": r"cannot be called with z \(2, 16\) at \S+own.py line 6 \(KeyError: 'b'\); set",
    "own:Rounded": r"makes torch.uint8 images, which have no gradient",
    "own:Several": r"several outputs \(0 \(2, 1, 8, 8\), 1 \(2, 1, 8, 8\)\); say which, as output",
    "own:Shared": r"random numbers of the shape \(1, 8, 8\) for 2 images, which are not the same",
    "own:Either": r"can be called with labels=\w+ and labels=\w+; set it",
    "own:asserts": r"own:asserts fails at \S+own.py line \d+ \(AssertionError: bad config\)",
    "own:exits": r"own:exits fails at \S+own.py line \d+ \(SystemExit: 2\)",
    "own.Nobody": r"own has no Nobody",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own", raising=False)
    torch.save(trained(forms.Net).state_dict(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize("factory", WRONG)
def test_what_cannot_be_called_is_one_sentence(own, factory):
    with pytest.raises(InstilError, match=WRONG[factory]) as caught:
        student_of(own, factory)
    assert "\n" not in str(caught.value)


def test_a_network_that_forgets_what_it_draws_with_is_refused_once_saved(own, tmp_path):
    student = student_of(own, "own.Forgetful")
    student.save_pretrained(tmp_path / "saved")
    with pytest.raises(InstilError, match=r"draws other images than the student it was saved from"):
        check_saved(student, tmp_path / "saved", factory="own.Forgetful")


UNREADABLE = {
    "a program": (
        lambda path: torch.jit.save(torch.jit.trace(forms.Net().eval(), torch.ones(1, 16)), path),
        r"it is a TorchScript program, of which the state_dict\(\) is needed",
    ),
    "onnx": (
        lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch"),
        r"neither a .safetensors file nor one of torch.save",
    ),
    "half a file": (
        lambda path: (
            torch.save({"a": torch.ones(9)}, path),
            path.write_bytes(path.read_bytes()[:400]),
        ),
        r"not a whole file of torch.save",
    ),
    "other weights": (
        lambda path: torch.save(torch.nn.Linear(3, 3).state_dict(), path),
        r"holds other weights: missing net.0.weight",
    ),
    "two networks": (
        lambda path: torch.save(
            {"a": forms.Net().state_dict(), "b": forms.Net().state_dict()}, path
        ),
        r"several networks fit \(key=a, key=b\); set key",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_hold_no_such_weights_are_refused_by_name(tmp_path, case):
    write, message = UNREADABLE[case]
    write(tmp_path / "a.pt")
    with pytest.raises(InstilError, match=message):
        student_of(tmp_path / "a.pt", f"{FORMS}:Net")
