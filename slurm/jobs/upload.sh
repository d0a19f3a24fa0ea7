#!/usr/bin/env bash
# Job: every checkpoint of the run to where checkpoint.upload says, while it trains (docs/checkpoint_traffic.md).
set -euo pipefail

one_cpu_node
# shellcheck disable=SC2034 # run.sh reads it
job_command=("$SMOL_PYTHON" -m slurm.upload "$SMOL_CONFIG" --watch)
