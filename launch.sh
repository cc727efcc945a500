#!/usr/bin/env bash
# From a clean checkout to the headline number.
#
#   ./launch.sh [RECIPE] [key=value …] [--resume [DIR]]   distil; without arguments the digits demo
#   ./launch.sh test [--all] [pytest arguments]           the quick tests, or all of them
#
#   NUM_PROCESSES=2 ./launch.sh digits                    several processes, on CPUs or GPUs
#   PYTHON=python3.12 ./launch.sh                         another Python (3.11 or newer)
#
# An active environment that has the package is used; otherwise .venv is made beside this file, by uv
# where that is installed. accelerate's own configuration file, where there is one, starts the run.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # called as `sh launch.sh`
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "$0")")" && pwd)"

if [ "${1:-}" = test ]; then extras="[dev]" needs=pytest; else extras="" needs=accelerate; fi

has_package() {
    "$active/bin/python" -c "import importlib.metadata as m, importlib.util as u, sys
m.version('instil'); sys.exit(u.find_spec('$needs') is None)" 2>/dev/null
}
uv_is_here() { command -v uv >/dev/null; }

make_environment() { # a new one, or again where making it was interrupted
    local python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: $python is older than 3.11; set PYTHON to a newer one" >&2; exit 2; }
    echo "making $active and installing; torch is large, this takes minutes, once" >&2
    rm -rf "$active"
    if uv_is_here; then uv venv --quiet --python "$python" "$active"; else "$python" -m venv "$active"; fi
}

install() {
    if uv_is_here; then
        uv pip install --quiet --python "$active/bin/python" --editable "$root$extras"
    else
        "$active/bin/python" -m pip install --quiet --editable "$root$extras"
    fi
}

active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
if [ -z "$active" ] || ! has_package; then
    active="$root/.venv"
    { "$active/bin/python" -c "" && { uv_is_here || "$active/bin/python" -m pip --version; }; } \
        >/dev/null 2>&1 || make_environment
    stamp="$active/installed$extras"
    if [ "$root/setup.cfg" -nt "$stamp" ]; then
        if install; then
            touch "$stamp"
        elif has_package; then
            echo "$active is older than setup.cfg and could not be renewed; it is used as it is" >&2
        else
            echo "error: $active could not be filled; the same command tries again" >&2
            exit 2
        fi
    fi
fi
# The packages are found here from any folder, and after this one was moved.
export PATH="$active/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

if [ "${1:-}" = test ]; then
    shift
    cd "$root"
    chosen="not slow"
    if [ "${1:-}" = --all ]; then shift; chosen=""; fi
    # One thread: tests work on tiny tensors, and two processes would fight over the cores.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec python -m pytest --numprocesses auto --dist worksteal -m "$chosen" "$@"
fi

configuration="${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/accelerate/default_config"
if [ -f "$configuration.yaml" ] || [ -f "$configuration.json" ]; then
    start=(accelerate.commands.launch ${NUM_PROCESSES:+--num_processes "$NUM_PROCESSES"})
elif [ "${NUM_PROCESSES:-1}" -gt 1 ]; then
    start=(torch.distributed.run --standalone --nproc_per_node "$NUM_PROCESSES")
else
    cores="$(getconf _NPROCESSORS_ONLN)" # small networks gain nothing from more than a few
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores < 4 ? cores : 4))}"
    exec python -m distill "$@"
fi
# An error inside a launcher ends in its traceback, so faults are looked for first.
python -m distill --check "$@" >/dev/null
exec python -m "${start[@]}" -m distill "$@"
