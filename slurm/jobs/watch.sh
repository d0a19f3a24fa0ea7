#!/usr/bin/env bash
# Job: the watcher of a run (docs/watching.md). A job of its own, so that it outlives the training job and can start it again.
set -euo pipefail

one_cpu_node
# shellcheck disable=SC2034 # submit.sh and run.sh read them
SMOL_CPUS_PER_RANK=1
# shellcheck disable=SC2034
job_command=("$SMOL_PYTHON" -m slurm.watch "$SMOL_RUN" --every "${SMOL_WATCH_SECONDS:-60}")
