#!/usr/bin/env bash
# A rank that stands in for the trainer where only the life of the job matters: saves checkpoints that are empty, and ends as a real
# one does. What it does is told by the options of the job (submit.sh ... -- BEHAVIOUR):
#
#   work       a checkpoint at once, 5 steps after the newest; then until RUN/finish is there (0), RUN/stop (93), or a signal (85)
#   crash      exit code 1 at once
#   stubborn   as work, but deaf to signals
#   refuse     rank 0 ends with 93, the others would go on for ever
#   suspect    as work on a node that is not n1; on n1 it says that the device is suspected, and ends with 85
set -euo pipefail

behaviour=$1
stopped=""
trap 'stopped=yes' USR1 TERM
printf '%s %s %s %s\n' "$SLURM_PROCID" "$SLURMD_NODENAME" "$$" "${SLURM_RESTART_COUNT:-0}" >>"$SMOL_RUN/ranks"

save() {
  local newest
  [[ $SLURM_PROCID == 0 ]] || return 0
  newest=$(find "$SMOL_RUN" -maxdepth 1 -name 'iter_???????' | sort | tail -n 1)
  newest=$((10#${newest##*iter_}0 / 10 + 5))
  mkdir -p "$SMOL_RUN/$(printf 'iter_%07d' "$newest")"
  touch "$SMOL_RUN/$(printf 'iter_%07d' "$newest")/COMPLETE"
  echo "saved step $newest"
}

case $behaviour in
  crash) exit 1 ;;
  stubborn) trap '' USR1 TERM ;;
  refuse) [[ $SLURM_PROCID != 0 ]] || exit 93 ;;
  suspect)
    if [[ $SLURMD_NODENAME == n1 ]]; then
      echo "{\"host\": \"$SLURMD_NODENAME\", \"step\": 5}" >>"$SMOL_RUN/suspects.jsonl"
      exit 85
    fi
    ;;
esac
[[ $behaviour == refuse ]] || save
while true; do
  if [[ -n $stopped ]]; then
    save
    exit 85
  fi
  [[ ! -e $SMOL_RUN/stop ]] || exit 93
  [[ ! -e $SMOL_RUN/finish ]] || exit 0
  sleep 0.2
done
