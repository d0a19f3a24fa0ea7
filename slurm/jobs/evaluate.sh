#!/usr/bin/env bash
# Job: submits one evaluation for every checkpoint that is exported, and uploaded where checkpoint.upload is set, while the run
# trains; brings the results into its TensorBoard and tells of what is behind SMOL_EVALUATE_REFERENCES
# (docs/checkpoint_traffic.md). Needs the right to sbatch from a node.
set -euo pipefail

one_cpu_node
# shellcheck disable=SC2034 # run.sh reads it
job_command=("$SMOL_PYTHON" -m slurm.evaluations "$SMOL_CONFIG" --watch)
