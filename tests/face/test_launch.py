"""`launch.sh` in half-made environments, other folders and shells; stubs stand for pip and uv."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = f"""#!/bin/sh
case "$*" in
    *"-m pip --version"*) [ -e "$HERE/.venv/bin/pip" ] ;;
    *"-m pip install"*) echo install >>"$HERE/calls"; [ ! -e "$HERE/offline" ] ;;
    *"-m venv"*) echo venv >>"$HERE/calls"; mkdir -p "$HERE/.venv/bin"
        cp "$0" "$HERE/.venv/bin/python"; touch "$HERE/.venv/bin/pip" ;;
    *"import importlib.metadata"*) [ -e "$HERE/.venv/installed" ] ;;
    *"-m distill"*) echo "distill in $PWD: $*" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """Run a copy of launch.sh whose Python is a stub; returns its output and what was called."""
    here = tmp_path / "checkout"
    here.mkdir()
    for name in ("launch.sh", "setup.cfg"):
        shutil.copy(ROOT / name, here)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*words, cwd=here, shell="bash", script=here / "launch.sh", **more):
        calls = here / "calls"
        calls.unlink(missing_ok=True)
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHON": str(python)}
        done = subprocess.run(
            [shell, str(script), *words],
            cwd=cwd,
            env=env | {"HERE": str(here)} | more,
            capture_output=True,
            text=True,
        )
        return done, calls.read_text().split() if calls.exists() else []

    run.here, run.python = here, python
    return run


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_environment_is_made_once(launch, shell):
    done, calls = launch("digits", shell=shell)
    assert (done.returncode, calls) == (0, ["venv", "install"]), done.stderr
    assert f"distill in {launch.here}: -m distill digits" in done.stdout
    assert launch("digits", shell=shell)[1] == []


def test_an_environment_whose_making_was_interrupted_is_made_anew(launch):
    (launch.here / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(launch.python, launch.here / ".venv" / "bin" / "python")
    done, calls = launch("digits")
    assert (done.returncode, calls) == (0, ["venv", "install"]), done.stderr


def test_without_network_an_older_environment_still_starts(launch):
    launch("digits")
    os.utime(launch.here / ".venv" / "installed", (0, 0))
    (launch.here / "offline").touch()
    done, calls = launch("digits")
    assert (done.returncode, calls) == (0, ["install"])
    assert "older than setup.cfg" in done.stderr
    (launch.here / ".venv" / "installed").unlink()
    done, _ = launch("digits")
    assert (done.returncode, done.stdout) == (2, "")
    assert "could not be filled" in done.stderr


def test_from_another_folder_and_through_a_link(launch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(launch.here / "launch.sh")
    done, _ = launch("r.yaml", cwd=tmp_path / "elsewhere", script=tmp_path / "link")
    assert f"distill in {tmp_path / 'elsewhere'}: -m distill r.yaml" in done.stdout


def test_accelerates_own_configuration_is_not_overridden(launch, tmp_path):
    folder = tmp_path / ".cache" / "huggingface" / "accelerate"
    folder.mkdir(parents=True)
    (folder / "default_config.yaml").touch()
    launched = "-m accelerate.commands.launch"
    assert f"{launched} -m distill digits" in launch("digits")[0].stdout
    done, _ = launch("digits", NUM_PROCESSES="2")
    assert f"{launched} --num_processes 2 -m distill digits" in done.stdout


def test_several_processes_are_started_by_torchrun(launch):
    done, _ = launch("digits", NUM_PROCESSES="2")
    assert "-m torch.distributed.run --standalone --nproc_per_node 2 -m distill" in done.stdout


def test_uv_is_used_where_it_is(launch, tmp_path):
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        '#!/bin/sh\necho "uv-$1" >>"$HERE/calls"\n'
        'if [ "$1" = venv ]; then mkdir -p "$HERE/.venv/bin"\n'
        'cp "$PYTHON" "$HERE/.venv/bin/python"; fi\n'
    )
    uv.chmod(0o755)
    done, calls = launch("digits", PATH=f"{uv.parent}:/usr/bin:/bin")
    assert (done.returncode, calls) == (0, ["uv-venv", "uv-pip"]), done.stderr
