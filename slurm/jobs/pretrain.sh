#!/usr/bin/env bash
# Job: pre-training, one task a rank. Nodes and ranks are env.sh's; checkpoints of the run are its progress.
set -euo pipefail

# shellcheck disable=SC2034 # run.sh reads them
job_trains=yes
# shellcheck disable=SC2034
job_command=("$SMOL_PYTHON" "$SMOL_CODE/pretrain_smol.py" --config "$SMOL_CONFIG")
