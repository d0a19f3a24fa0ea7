#!/usr/bin/env bash
# Lint, formatting, types and shell scripts: what must be clean before a commit. `bash checks.sh --fix` mends what it can.
set -euo pipefail
cd "$(dirname "$0")"

if [[ ${1:-} == --fix ]]; then
  .venv/bin/ruff check --fix .
  .venv/bin/ruff format .
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
shellcheck -x ./*.sh .ci/run slurm/*.sh slurm/jobs/*.sh tests/slurm/*.sh
