"""Checkpoints are whole or absent, and only what fits is loaded."""

import json
import shutil

import pytest
import torch
from torch import nn

from instil.base import checkpoint
from instil.base.errors import InstilError


def trained(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(3):
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def test_there_and_back(tmp_path):
    module, optimizer = trained()
    folder = checkpoint.save(tmp_path, 3, {"m": module}, {"o": optimizer}, {"x": [1, 2]})
    other, other_optimizer = trained(1)
    checkpoint.restore(folder, {"m": other}, {"o": other_optimizer})
    for mine, theirs in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for model, opt in ((module, optimizer), (other, other_optimizer)):
        model.train()
        torch.manual_seed(7)
        model(torch.randn(5, 3)).square().sum().backward()
        opt.step()
    assert torch.equal(module[0].weight, other[0].weight)
    assert checkpoint.read_meta(folder) == {"step": 3, "x": [1, 2]}


def test_only_the_newest_are_kept_and_partial_ones_are_not_seen(tmp_path):
    module, optimizer = trained()
    for step in (0, 10, 9):
        checkpoint.save(tmp_path, step, {"m": module}, {"o": optimizer}, {}, keep=2)
    (tmp_path / ".step-00000011.partial").mkdir()
    (tmp_path / "step-00000012").mkdir()
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step-00000009", "step-00000010"]


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    module, optimizer = trained()
    checkpoint.save(tmp_path, 1, {"m": module}, {"o": optimizer}, {"life": 1})
    folder = checkpoint.save(tmp_path, 1, {"m": module}, {"o": optimizer}, {"life": 2})
    assert checkpoint.read_meta(folder)["life"] == 2


def test_a_failed_save_leaves_the_last_one_whole(tmp_path):
    module, optimizer = trained()
    good = checkpoint.save(tmp_path, 1, {"m": module}, {"o": optimizer}, {})
    with pytest.raises(TypeError):  # not JSON
        checkpoint.save(tmp_path, 2, {"m": module}, {"o": optimizer}, {"x": object()})
    blocked = tmp_path / ".step-00000003.partial"
    blocked.write_text("a file where the folder must go")
    with pytest.raises(OSError, match=r"step-00000003: checkpoint could not be written \(File exi"):
        checkpoint.save(tmp_path, 3, {"m": module}, {"o": optimizer}, {})
    assert checkpoint.find(tmp_path) == [good]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "m.safetensors").unlink(), "m.safetensors: missing"),
        (lambda f: (f / "m.safetensors").write_bytes(b"\x08" * 100), "not a whole safetensors"),
        (
            lambda f: (f / "m.safetensors").write_bytes((f / "m.safetensors").read_bytes()[:-4]),
            "not a whole safetensors",
        ),
        (lambda f: (f / "o.safetensors").unlink(), "o.safetensors: missing"),
        (lambda f: shutil.copy(f / "m.safetensors", f / "o.safetensors"), "belongs to no param"),
    ],
)
def test_damage_is_named_and_nothing_is_changed(tmp_path, damage, message):
    module, optimizer = trained()
    folder = checkpoint.save(tmp_path, 3, {"m": module}, {"o": optimizer}, {})
    damage(folder)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    nn.init.zeros_(module[0].weight)
    before["0.weight"].zero_()
    with pytest.raises(InstilError, match=message):
        checkpoint.restore(folder, {"m": module}, {"o": optimizer})
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_foreign_weights_are_named(tmp_path):
    module, optimizer = trained()
    folder = checkpoint.save(tmp_path, 3, {"m": module}, {"o": optimizer}, {})
    other = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    with pytest.raises(InstilError, match=r"unexpected 1.running_mean.*0.weight is .*\(4, 3\)"):
        checkpoint.restore(folder, {"m": other}, {"o": optimizer})


def test_no_checkpoint_and_broken_description(tmp_path):
    with pytest.raises(InstilError, match="no checkpoint there"):
        checkpoint.read_meta(tmp_path)
    (tmp_path / checkpoint.META).write_text("{")
    with pytest.raises(InstilError, match="not a JSON file"):
        checkpoint.read_meta(tmp_path)


def test_shared_tensors_are_written(tmp_path):
    layer = nn.Linear(3, 3)
    module = nn.Sequential(layer, layer)
    folder = checkpoint.save(tmp_path, 0, {"m": module}, {}, {})
    tensors = checkpoint.read_tensors(folder / "m.safetensors")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert json.loads((folder / checkpoint.META).read_text())["step"] == 0
