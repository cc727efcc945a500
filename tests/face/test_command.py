"""The command `instil`, in folders that hold the user's own files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import instil

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from instil.__main__ import main; sys.exit(main())"]


def run(words, folder):
    """The words, run in a folder; all that was printed, and the exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    """One that holds files of the names of our packages."""
    for name in ("eval.py", "distill.py", "instructors/__init__.py", "students/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong file')")
    return tmp_path


@pytest.mark.parametrize("command", ["distill", "eval", "instructors"])
@pytest.mark.parametrize("start", [[sys.executable, "-m", "instil"], COMMAND])
def test_the_users_own_files_are_not_in_the_way_of_the_command(start, command, folder):
    code, printed = run([*start, command, "--help"], folder)
    assert code == 0, printed
    assert printed.startswith("usage:")


def test_help_and_version_cost_no_torch(tmp_path):
    code, printed = run([sys.executable, "-X", "importtime", "-m", "instil", "--help"], tmp_path)
    assert code == 0
    assert all(name in printed for name in ("distill", "eval", "instructors", "students"))
    imported = {line.rpartition("|")[2].strip() for line in printed.splitlines()}
    assert not imported & {"torch", "numpy", "pydantic", "diffusers"}
    assert run([*COMMAND, "--version"], tmp_path) == (0, f"instil {instil.__version__}\n")


@pytest.mark.parametrize(("name", "mark"), [("eval.py", "."), ("students/__init__.py", "/")])
def test_python_m_names_the_file_in_the_way(name, mark, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    code, printed = run([sys.executable, "-m", "distill", "--check"], tmp_path)
    (line,) = printed.splitlines()
    assert code == 1
    assert f"{tmp_path / name} hides Instil's own package {name.partition(mark)[0]};" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    ["accelerate.commands.launch --num_processes 1", "torch.distributed.run --standalone"],
)
def test_launchers_name_the_file_in_the_way(launcher, tmp_path):
    (tmp_path / "eval.py").write_text("")
    code, printed = run([sys.executable, "-m", *launcher.split(), "-m", "distill"], tmp_path)
    assert code == 1
    assert f"{tmp_path / 'eval.py'} hides Instil's own package eval; rename it" in printed
