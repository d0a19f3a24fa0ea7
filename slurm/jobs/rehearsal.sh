#!/usr/bin/env bash
# Job: the whole life of a run in twenty steps, before the long run: train, save, kill a rank, go on, stop by a signal, go on, export,
# verify, upload, alert. One verdict in RUN/rehearsal/verdict.json and at the end of the log (docs/slurm.md).
set -euo pipefail

# shellcheck disable=SC2034 # submit.sh and run.sh read them
job_trains=yes
# shellcheck disable=SC2034 # what fails here is for a person to see
SMOL_MAX_RESTARTS=0

# In place of run.sh's: it starts the ranks itself, three times.
# shellcheck disable=SC2034,SC2317 # run.sh calls it and reads code
run_ranks() {
  code=0 launcher=()
  set_launcher
  SMOL_ENDS=$SMOL_RUN/rehearsal/ends "$SMOL_PYTHON" -m slurm.rehearsal "$SMOL_CONFIG" -- "${launcher[@]}" || code=$?
}
