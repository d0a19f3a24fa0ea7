#!/usr/bin/env bash
# Watches a run until it is done (docs/watching.md):   bash slurm/watch.sh RUN
#
#   On a login node, in tmux, or as a job of its own that runs beside the training: bash slurm/submit.sh watch CONFIG
#   Settings: slurm/env.sh, or the file that SMOL_ENV names; SMOL_WATCH_SECONDS lie between two looks.
set -euo pipefail

slurm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/lib.sh
source "$slurm/lib.sh"

(($# == 1)) || die 2 "RUN is needed: the run's folder (train.output_dir), as submit.sh prints it"
load_env "${SMOL_ENV:-$slurm/env.sh}"
PYTHONPATH=$(dirname "$slurm") exec "$SMOL_PYTHON" -P -m slurm.watch "$1" --every "${SMOL_WATCH_SECONDS:-60}"
