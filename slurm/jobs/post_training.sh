#!/usr/bin/env bash
# Job: a recipe of post-training, one task a rank; the recipe stands behind --. Its checkpoints are its progress, and it goes on from
# the newest (docs/post_training.md):   bash slurm/submit.sh post_training C.yaml -- sft
set -euo pipefail

# shellcheck disable=SC2034 # submit.sh and run.sh read them
job_trains=yes job_recipe=yes

# In place of run.sh's: the recipe is a subcommand, and comes before the options.
# shellcheck disable=SC2317 # run.sh calls it
run_ranks() {
  set_launcher
  run_step "$SMOL_PYTHON" -m post_training "${1:-}" --config "$SMOL_CONFIG" "${@:2}"
}
