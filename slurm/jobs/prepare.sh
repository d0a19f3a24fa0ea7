#!/usr/bin/env bash
# Job: the datasets that a configuration needs, downloaded, tokenised and verified on one node (docs/data.md). Its options stand
# behind --:   bash slurm/submit.sh prepare C.yaml -- --text-root /fsx/me/text
set -euo pipefail

one_cpu_node
# shellcheck disable=SC2034 # run.sh reads it
job_command=("$SMOL_PYTHON" -m data_tools prepare --config "$SMOL_CONFIG" --workers "$SMOL_CPUS_PER_RANK")
