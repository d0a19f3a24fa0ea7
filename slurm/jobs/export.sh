#!/usr/bin/env bash
# Job: every checkpoint of the run exported to Hugging Face's format while it trains (docs/exporting.md). Its options stand behind --,
# such as:   bash slurm/submit.sh export C.yaml -- --push my-org/checkpoints
set -euo pipefail

one_cpu_node
# shellcheck disable=SC2034 # run.sh reads it
job_command=("$SMOL_PYTHON" -m conversion export --watch "$SMOL_RUN" --threads "$SMOL_CPUS_PER_RANK")
