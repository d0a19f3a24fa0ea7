#!/usr/bin/env bash
# A rank that stands in for the trainer where only the life of the job matters: saves checkpoints that are empty, and ends as a real
# one does. What it does is told by the options of the job (submit.sh ... -- BEHAVIOUR):
#
#   work       a checkpoint at once, 5 steps after the newest; then until RUN/finish is there (0), RUN/stop (93), or a signal (85)
#   crash      exit code 1 at once
#   stubborn   as work, but deaf to SIGUSR1
#   deaf       as work, but deaf to SIGUSR1 and SIGTERM
#   refuse     rank 0 ends with 93, the others crash when they have lost it
#   suspect    as work, but where n1 takes part, its device is suspected, and all end with 85
set -euo pipefail

behaviour=$1
stopped=""
trap 'stopped=yes' USR1 TERM
printf '%s %s %s %s\n' "$SLURM_PROCID" "$SLURMD_NODENAME" "$$" "${SLURM_RESTART_COUNT:-0}" >>"$SMOL_RUN/ranks"
printf '%s %s %s\n' "$SLURMD_NODENAME" "${DATA_ROOT:-}" "${SMOL_SHARED_DATA:-}" >>"$SMOL_RUN/data_roots"

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
  stubborn) trap '' USR1 ;;
  deaf) trap '' USR1 TERM ;;
  refuse)
    [[ $SLURM_PROCID != 0 ]] || exit 93
    sleep 1
    exit 1
    ;;
  suspect)
    if scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -qx n1; then
      [[ $SLURMD_NODENAME != n1 ]] || echo '{"host": "n1", "step": 5}' >>"$SMOL_RUN/suspects.jsonl"
      exit 85
    fi
    ;;
esac
save
while true; do
  if [[ -n $stopped ]]; then
    trap '' USR1 TERM # a second signal would end what `save` starts
    save
    exit 85
  fi
  [[ ! -e $SMOL_RUN/stop ]] || exit 93
  [[ ! -e $SMOL_RUN/finish ]] || exit 0
  sleep 0.2 || true # it hears the signals too
done
