"""What is installed, who imports whom, what the documents say."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import instil

ROOT = Path(__file__).parents[2]
PACKAGES = ["instil", "instructors", "students", "eval", "distill"]
ROOMS = [
    "instil/base",
    *PACKAGES[1:],
    "instil",
]  # each may import what is left; the last is the face


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    allowed = {each.split("/")[0] for each in ROOMS[: ROOMS.index(room) + 1]}
    for path in (ROOT / "instil").glob("*.py") if room == "instil" else modules(room):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or ""]
            else:
                continue
            for name in names:
                first, *rest = name.split(".")
                assert first not in ("tests", "benchmarks", "experiments"), path
                assert first not in PACKAGES or first in allowed, f"{path} imports {name}"
                assert room == "instil" or first != "instil" or rest[:1] == ["base"], path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package):
    for path in modules(package):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else_and_runs(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in listed:
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", tmp_path / "source"],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "source" / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    assert names == {name for name in listed if name.split("/")[0] in PACKAGES}
    for words in (
        "distill digits --dry-run",
        "students sample digits-gan --seeds 0-3 --grid out.png",
        "eval fid --instructor digits --reference digits --samples 50 --extractor digits",
    ):
        done = subprocess.run(
            [sys.executable, "-m", *words.split()],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").exists()


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == instil.__version__


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")]


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in PAGES])
def test_files_the_documents_name_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, python):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    script = tmp_path / "readme.py"
    script.write_text(block)
    printed = python(script, env={"PYTHONPATH": str(ROOT)}).stdout
    before, after = re.findall(r"\d+\.\d+", printed)
    assert float(after) < 0.5 * float(before)  # from 0.26 to 0.42 with seeds and rounding
