#!/usr/bin/env bash
# Job: datasets to the own disks of nodes ahead of time (docs/staging.md), such as those of a spare node. Which nodes: SMOL_STAGE_NODES
# and SMOL_STAGE_SBATCH in env.sh. Killed at any moment, it goes on where it stopped.
set -euo pipefail

# shellcheck disable=SC2034 # submit.sh and run.sh read them
{
  SMOL_NODES=${SMOL_STAGE_NODES:-1} SMOL_RANKS_PER_NODE=1 SMOL_GPUS_PER_NODE=0
  SMOL_SBATCH=${SMOL_STAGE_SBATCH:-}
  job_command=("$SMOL_PYTHON" -m slurm.staging --config "$SMOL_CONFIG" --run "$SMOL_RUN"
    --out "$SMOL_RUN/slurm/staging/${SLURM_JOB_ID:-}-${SLURM_RESTART_COUNT:-0}")
}
