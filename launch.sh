#!/usr/bin/env bash
# From a clean checkout to the headline number.
#
#   ./launch.sh [RECIPE] [key=value …] [--resume [DIR]]   distil; without arguments the digits demo
#   ./launch.sh test [--all] [pytest arguments]           the quick tests, or all of them
#
#   NUM_PROCESSES=2 ./launch.sh digits                    several processes, on CPUs or GPUs
#   PYTHON=python3.12 ./launch.sh                         another Python (3.11 or newer)
#
# An active environment that has the package is used; otherwise .venv is made here, once.
set -euo pipefail
cd "$(dirname "$0")"

if [ "${1:-}" = test ]; then extras="[dev]" needs=pytest; else extras="" needs=accelerate; fi

active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
if [ -z "$active" ] || ! "$active/bin/python" -c "import $needs, importlib.metadata as m; m.version('instil')" 2>/dev/null; then
    active="$PWD/.venv"
    if [ ! -x "$active/bin/python" ]; then
        python="${PYTHON:-python3}"
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "error: $python is older than 3.11; set PYTHON to a newer one" >&2; exit 2; }
        echo "making $active and installing; torch is large, this takes minutes, once" >&2
        "$python" -m venv "$active"
    fi
    stamp="$active/installed$extras"
    if [ setup.cfg -nt "$stamp" ]; then
        "$active/bin/python" -m pip install --quiet --editable ".$extras"
        touch "$stamp"
    fi
fi
export PATH="$active/bin:$PATH"

if [ "${1:-}" = test ]; then
    shift
    chosen="not slow"
    if [ "${1:-}" = --all ]; then shift; chosen=""; fi
    # One thread: tests work on tiny tensors, and two processes would fight over the cores.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec python -m pytest --numprocesses auto --dist worksteal -m "$chosen" "$@"
fi

# An error inside `accelerate launch` ends in its traceback, so faults are looked for first.
python -m distill --check "$@" >/dev/null

processes="${NUM_PROCESSES:-1}"
if [ "$processes" -gt 1 ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    # `accelerate launch --cpu` starts one process whatever it is told; torchrun starts them all.
    export ACCELERATE_USE_CPU=true OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec torchrun --standalone --nproc_per_node "$processes" -m distill "$@"
fi
cores="$(getconf _NPROCESSORS_ONLN)" # small networks gain nothing from more than a few
exec accelerate launch --num_processes "$processes" --num_machines 1 --mixed_precision no \
    --dynamo_backend no --num_cpu_threads_per_process "${OMP_NUM_THREADS:-$((cores < 4 ? cores : 4))}" \
    -m distill "$@"
