#!/usr/bin/env bash
# Sets up the environment with the test pins and runs the tests, offline; the minutes-long ones (-m slow) are left to .ci/run.
#
#   bash run_tests.sh [pytest arguments]        for example: bash run_tests.sh tests/smol_data -k permutation
#
# Two workers (pytest-xdist) take a file each, in the order of tests/conftest.py, since much of the time is waiting for Slurm and for
# files; -n 0 for a debugger.
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh

install_requirements requirements.txt requirements-dev.txt
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder "$@"
