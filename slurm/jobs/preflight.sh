#!/usr/bin/env bash
# Job: the checks of preflight on all nodes, and no training (docs/preflight.md). Behind -- may stand another file of limits:
#   bash slurm/submit.sh preflight C.yaml -- configs/preflight/h100_thorough.yaml
set -euo pipefail

[[ -n ${SMOL_PREFLIGHT:-} ]] || die 2 "SMOL_PREFLIGHT is empty; name a file of configs/preflight in slurm/env.sh"

# In place of run.sh's: the steps are sruns of their own, and whatever they find, the job is not started again.
# shellcheck disable=SC2034,SC2317 # run.sh calls it and reads code
run_ranks() {
  local line
  set_rendezvous
  line=$(preflight "${1:-$SMOL_PREFLIGHT}")
  code=0
  [[ $line == ok ]] || code=93
}
