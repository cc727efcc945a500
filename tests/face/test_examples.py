"""The programs of `examples/` and of the page "From Python", with fewer updates."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from distill.__main__ import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def program(text):
    """Python to run here: a run makes 10 updates, not hundreds, and measures few images."""
    few = """**{f"evaluation.{k}": 64 for k in ("samples", "quick_samples")}"""
    text = re.sub(r"\bsteps(=|: int = )\d+", r"steps\g<1>10", text)
    return compile(re.sub(r'(name="[\w-]+")', rf"\1, {few}", text), "program", "exec")


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("docs/python.md"))))
def test_programs_of_the_page(number, folder, capsys):
    exec(program(blocks("docs/python.md")[number]), {})
    if number == 0:  # the first program
        assert len(blocks("docs/python.md")[0].split("\n")) <= 14
        assert "torch.Size([16, 1, 8, 8])" in capsys.readouterr().out
        assert (folder / "runs" / "first" / "report.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_loop", "own_gan"])
def test_scripts(name, folder, capsys):
    shutil.copy(EXAMPLES / f"{name}.py", folder)
    exec(program((folder / f"{name}.py").read_text()), {"__name__": "__main__"})
    assert re.search(r"\d\.\d\d", capsys.readouterr().out)


@pytest.mark.slow
def test_four_gaussians_are_learnt(python):
    printed = python(EXAMPLES / "toy.py", env={"PYTHONPATH": str(ROOT)}).stdout
    before, after = re.findall(r"\d+\.\d+", printed)
    assert float(after) < 0.5 * float(before)  # from 0.26 to 0.42 with seeds and rounding


@pytest.mark.slow
def test_the_notebook(folder):
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(program("".join(cell["source"])), names)
    assert len(names["losses"]) == 10


@pytest.mark.slow
def test_a_divergence_of_ones_own(folder):
    text = (EXAMPLES / "own_divergence" / "recipe.yaml").read_text()
    assert len(text.splitlines()) == 3
    shutil.copytree(EXAMPLES / "own_divergence", folder, dirs_exist_ok=True)
    try:
        assert main(["recipe.yaml", "train.steps=3", "evaluation.extractor=null"]) == 0
    finally:
        sys.modules.pop("levelled", None)
    assert "levelled:Levelled" in (folder / "runs" / "levelled" / "recipe.yaml").read_text()
