"""What is installed, who imports whom, what the documents say."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import instil
import tests

ROOT = Path(__file__).parents[2]
PACKAGES = ["instil", "instructors", "students", "eval", "distill"]
# Each may import what stands left of it; the last is the face.
ROOMS = ["instil/base", "instructors", "students", "eval", "distill", "instil"]
OUTSIDE = ("tests", "benchmarks", "experiments")
MOST_LINES = 60  # of a function, its docstring not counted
MOST_FILES = 14  # of Python and of Markdown in a folder


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(nodes):
    """The names of the modules, and of what is taken from them."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    """Those inside functions as well."""
    allowed = {each.split("/")[0] for each in ROOMS[: ROOMS.index(room) + 1]}
    for path in (ROOT / "instil").glob("*.py") if room == "instil" else modules(room):
        for name in imported(ast.walk(ast.parse(path.read_text()))):
            first, second, *_ = f"{name}.".split(".")
            assert first not in OUTSIDE, f"{path} imports {name}"
            assert first not in PACKAGES or first in allowed, f"{path} imports {name}"
            assert room == "instil" or first != "instil" or second == "base", path


def test_imports_make_no_circle():
    """Of modules while they are loaded, so that any of them may be imported first."""
    files = {}
    for package in PACKAGES:
        for path in modules(package):
            words = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(words).removesuffix(".__init__")] = path
    graph = {}
    for name, path in files.items():
        found = set(imported(ast.parse(path.read_text()).body))
        graph[name] = {each if each in files else each.rpartition(".")[0] for each in found}
    graphlib.TopologicalSorter(graph).prepare()


def functions(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_fit_on_a_screen(package):
    for path in modules(package):
        for node in functions(path) if path.name != "pickles.py" else ():
            documented = ast.get_docstring(node) is not None
            first = node.body[documented].lineno if len(node.body) > documented else node.end_lineno
            length = node.end_lineno - first + 1
            assert length <= MOST_LINES, f"{path}: {node.name} has {length} lines"


@pytest.mark.parametrize("top", [*PACKAGES, "benchmarks", "experiments", "tests", "docs"])
def test_folders_can_be_overlooked(top):
    for folder in (ROOT / top, *(each for each in (ROOT / top).rglob("*") if each.is_dir())):
        files = [path.name for path in folder.iterdir() if path.suffix in (".py", ".md")]
        assert len(files) <= MOST_FILES, f"{folder}: {len(files)} files"


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks", "experiments"])
def test_every_module_says_what_it_is(package):
    for path in modules(package):
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert (path.parent / "__init__.py").exists(), path.parent


def test_these_tests_hide_those_that_torch_fidelity_installs():
    assert Path(tests.__file__).parent == ROOT / "tests"


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


PAGES = [
    *ROOT.glob("*.md"),
    *(path for top in ("docs", "benchmarks", "experiments") for path in (ROOT / top).rglob("*.md")),
]


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in PAGES])
def test_files_the_documents_name_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target
