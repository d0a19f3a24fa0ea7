#!/usr/bin/env bash
# One rank of a job, as srun starts it: runs the command, and tells run.sh the exit codes that are agreed on.
#
# srun's own exit code is the highest of all ranks', and at the first that is not 0 it kills the others (--kill-on-bad-exit). A rank
# that ends with 93 would drown in the 137 of those it took along, and one that has saved and ends with 85 would stop another in its
# last save. So 85 and 93 are left as files, and srun sees 0: it gives the others --wait seconds. A crash it sees as it is.
set -euo pipefail

if [[ -n ${SMOL_STAGED:-} ]]; then # its node's own disk; in checkpoints the trainer names the place that all nodes see
  export SMOL_SHARED_DATA=$DATA_ROOT DATA_ROOT=${SMOL_STAGED//%N/$SLURMD_NODENAME}
fi
read -ra wrap <<<"${SMOL_WRAP:-}"
code=0
trap : TERM USR1 INT # they are meant for the command, which hears them as well
"${wrap[@]}" "$@" || code=$?
case $code in
  85 | 93) touch "$SMOL_ENDS/$code" || exit "$code" ;;
  *) exit "$code" ;;
esac
