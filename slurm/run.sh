#!/usr/bin/env bash
# The batch script of every job: runs on the job's first node, once for each start, and sees to it that there is a next one.
#
#   sbatch OPTIONS slurm/run.sh RUN CODE JOB        by submit.sh: the run's folder, the copy of the code, a file of slurm/jobs/
#
# begin: may it start (starts.py)?  ->  are the nodes fit (preflight.sh)?  ->  data to their own disks (staging)  ->
# one srun task a rank (rank.sh)  ->  end: done, stop, or again
#
#   exit code 0     done
#   93              not started again: the ranks refused or RUN/stop was there, no progress, started too often
#   85, a crash     started again: this job back into the queue (scontrol requeue), or its successor, or, without a node that is not
#                   fit or on which a device is suspected, a new job
#
# Slurm itself starts a job again only when a node dies or an operator requeues it. All that this script does, it says in the log.
#SBATCH --open-mode=append       # a start after a requeue goes on in the same log, and does not wipe it
#SBATCH --wait-all-nodes=1       # ranks are not started while a node is still booting
set -euo pipefail

SMOL_RUN=$1 SMOL_CODE=$2 job=$3
submission=$SMOL_CODE/submission
chain=$(basename "$SMOL_CODE")
restart=${SLURM_RESTART_COUNT:-0}
SMOL_CONFIG=$submission/config.yaml
SMOL_ENDS=$SMOL_RUN/slurm/ends/$SLURM_JOB_ID-$restart
SMOL_STAGED="" # the folder of each node from which ranks read, once staging has filled it
export SMOL_RUN SMOL_CODE SMOL_CONFIG SMOL_ENDS SMOL_STAGED
# Modules come from the copy of the code, and not from the working directory, which may hold a newer one.
export PYTHONPATH=$SMOL_CODE PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1

# shellcheck source=slurm/lib.sh
source "$SMOL_CODE/slurm/lib.sh"
# shellcheck source=slurm/preflight.sh
source "$SMOL_CODE/slurm/preflight.sh"

asked=""       # why the ranks were asked to save and end
bad=""         # nodes that failed the preflight
code=85        # what the ranks ended with; asked to end before they began, they had nothing to save
srun=""        # its process, while ranks run
successor=""   # of a chain: the job that waits for this one's end

# --- what Slurm tells ------------------------------------------------------------------------------------------------------

# job_field NAME: of this job, as the controller has it now.
job_field() {
  retry scontrol show job "$SLURM_JOB_ID" --oneliner | grep -o " $1=[^ ]*" | head -n 1 | cut -d= -f2-
}

set_rendezvous() {
  local head
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # The address that Slurm itself uses: names of nodes do not resolve everywhere.
  MASTER_ADDR=$(retry scontrol show node "$head" --oneliner | grep -o ' NodeAddr=[^ ]*' | cut -d= -f2)
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet; below the ports that the kernel hands out
  while (: <"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do # somebody else listens there
    MASTER_PORT=$((MASTER_PORT + 1))
  done
  export MASTER_ADDR MASTER_PORT
}

# What the job saw, beside its log. Values of names that sound like secrets are left out.
record_environment() {
  local name
  for name in $(compgen -e | sort); do
    [[ $name =~ TOKEN|SECRET|PASSW|CREDENTIAL|WEBHOOK|KEY|AUTH ]] || printf '%s=%s\n' "$name" "${!name}"
  done >"$SMOL_RUN/slurm/logs/$job-$SLURM_JOB_ID-$restart.env"
}

# --- saving in time --------------------------------------------------------------------------------------------------------

# Once only: a second signal of the same kind would end a rank in the middle of its save.
# shellcheck disable=SC2317 # the traps call it
ask_to_save() {
  [[ -z $asked ]] || return 0
  asked=$1
  log "$2: the ranks are asked to save and end"
  [[ -z $srun ]] || kill -USR1 "$srun" 2>/dev/null || true # srun hands it on to every rank
}

# Ranks that do not end would be killed at the time limit together with this script, and nobody would start them again.
# shellcheck disable=SC2317
give_up() {
  [[ -n $asked && -n $srun ]] || return 0
  log "the ranks have not ended; they are killed, so that the job is started again before its time limit ends it"
  kill -TERM "$srun" 2>/dev/null || true
}

trap 'interrupted=yes; ask_to_save "time limit" "the time limit is near (USR1)"' USR1
trap 'interrupted=yes; ask_to_save ended "the job is being ended (TERM)"' TERM
trap 'interrupted=yes; give_up' USR2

# signal_after SECONDS NAME: to this script. A sleep that is stopped with it leaves nothing behind.
signal_after() {
  (
    sleep "$1" &
    trap 'kill $!' TERM
    wait $! && kill "-$2" $$
  ) &
  timers+=($!)
}

# Slurm's own signal (sbatch --signal) may be switched off or come to others; the job's end is known to all.
start_timers() {
  local end seconds
  timers=()
  end=$(job_field EndTime)
  [[ $end != Unknown ]] || return 0
  seconds=$(($(date -d "$end" +%s) - $(date +%s)))
  ((seconds > SMOL_SAVE_SECONDS)) ||
    die 93 "SMOL_TIME=$SMOL_TIME is not longer than SMOL_SAVE_SECONDS=$SMOL_SAVE_SECONDS; change slurm/env.sh and submit again"
  signal_after "$((seconds - SMOL_SAVE_SECONDS))" USR1
  signal_after "$((seconds - SMOL_SAVE_SECONDS / 5))" USR2
}

# --- the nodes -------------------------------------------------------------------------------------------------------------

# Whether ranks may start on them; else sets code, and bad where other nodes would do.
nodes_are_fit() {
  local verdict
  [[ $job_trains == yes && -n ${SMOL_PREFLIGHT:-} ]] || return 0
  verdict=$(preflight "$SMOL_PREFLIGHT")
  case $verdict in
    ok) ;;
    bad\ *) bad=${verdict#bad } && return 1 ;;
    *) code=93 && return 1 ;;
  esac
}

# Whether all have on their own disks what the ranks will read (docs/staging.md); else sets code.
data_is_near() {
  [[ $job_trains == yes && $job_recipe == no && -n ${SMOL_LOCAL_DATA:-} ]] || return 0
  set_launcher --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1
  run_step "$SMOL_PYTHON" -m slurm.staging --config "$SMOL_CONFIG" --run "$SMOL_RUN" \
    --out "$SMOL_RUN/slurm/staging/$SLURM_JOB_ID-$restart"
  [[ $code == 0 ]] || return 1
  SMOL_STAGED=$SMOL_LOCAL_DATA
  code=85 # again that of ranks that have not begun
}

# --- the ranks -------------------------------------------------------------------------------------------------------------

run_ranks() {
  set_launcher
  run_step "${job_command[@]}" "$@"
}

# run_step COMMAND...: by the launcher. Sets code: what its tasks ended with.
run_step() {
  mkdir -p "$SMOL_ENDS"
  rm -f "$SMOL_ENDS"/*
  "${launcher[@]}" "$@" &
  srun=$!
  while true; do # a signal ends bash's wait, not srun
    interrupted="" code=0
    wait "$srun" || code=$?
    [[ -n $interrupted ]] || break
  done
  srun=""
  if [[ -e $SMOL_ENDS/93 ]]; then
    code=93
  elif [[ $code == 0 && -e $SMOL_ENDS/85 ]]; then # beside a crash it only is how the others took their end
    code=85
  fi
  rm -rf "$SMOL_ENDS"
}

# Sets reason: why the ranks ended.
find_reason() {
  if [[ $code == 0 && -n $asked && $job_trains == no ]]; then
    code=85 # exporters and uploaders end in peace when they are asked to, with their work before them
  fi
  if [[ $code == 0 ]]; then
    reason="done"
  elif [[ $code == 93 ]]; then
    reason=stopped
  elif [[ -n $bad ]]; then
    reason="bad node"
  elif [[ $(job_field JobState) != RUNNING ]]; then
    reason=ended # by Slurm: scancel, a lost node, an operator; which of them it does not tell while the job is being cleaned up
  elif [[ $(job_field PreemptTime) == 20* ]]; then
    reason=preempted
  elif [[ $asked == "time limit" ]]; then
    reason="time limit"
  elif [[ $code == 85 ]]; then
    reason="asked for"
  else
    reason=crash
  fi
}

# --- the next start --------------------------------------------------------------------------------------------------------

starts() {
  local command=$1 trains=()
  shift
  [[ $job_trains == no ]] || trains=(--trains)
  "$SMOL_PYTHON" -m slurm.starts "$command" "$SMOL_RUN" --chain "$chain" --job "$SLURM_JOB_ID" \
    --max-restarts "$SMOL_MAX_RESTARTS" "${trains[@]}" "$@"
}

# queue_job [OPTION...]: one more job of this submission, which starts when this one is over; prints its id. What Slurm has set
# for this job is not for that one.
queue_job() {
  local options names
  mapfile -t options <"$submission/sbatch.options"
  mapfile -t names < <(compgen -e | grep '^SLURM_' | grep -vx SLURM_CONF)
  env "${names[@]/#/--unset=}" sbatch --parsable "${options[@]}" --dependency=singleton "$@" \
    "$SMOL_CODE/slurm/run.sh" "$SMOL_RUN" "$SMOL_CODE" "$job" | cut -d';' -f1
}

queue_successor() {
  [[ $SMOL_REQUEUE == chain ]] || return 0
  successor=$(retry queue_job)
  log "job $successor waits as successor"
}

drop_successor() {
  [[ -n $successor ]] || return 0
  retry scancel "$successor" && log "successor $successor cancelled"
  successor=""
}

start_again() {
  local exclude=$1 replacement
  if [[ -n $exclude ]]; then # a job that runs cannot change the nodes that it asks for
    if replacement=$(queue_job --exclude="$exclude"); then
      drop_successor
      log "job $replacement takes over, without $exclude"
      return
    fi
    if [[ -n $bad ]]; then
      log "without $exclude there are not enough nodes; not started again: mend $bad, or ask for fewer nodes, and submit again"
      next=stop
      return
    fi
    log "without $exclude there are not enough nodes; it is started again on any"
  fi
  if [[ -n $successor ]]; then
    log "successor $successor takes over"
  elif retry scontrol requeue "$SLURM_JOB_ID"; then
    log "back in the queue"
  else
    log "the job cannot be requeued; set SMOL_REQUEUE=chain in slurm/env.sh, and submit again"
  fi
}

# --- the order of things ---------------------------------------------------------------------------------------------------

load_env "$submission/env.sh"
load_job "$SMOL_CODE/slurm" "$job"
mapfile -t arguments <"$submission/arguments"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
log "job $SLURM_JOB_ID ($job), restart $restart, of $SMOL_RUN; code in $SMOL_CODE"

starts begin --restart "$restart" --nodes "$nodes"
queue_successor
start_timers
[[ $job_trains == no ]] || set_rendezvous
record_environment

if [[ -z $asked ]] && nodes_are_fit && [[ -z $asked ]] && data_is_near && [[ -z $asked ]]; then
  run_ranks "${arguments[@]}"
fi
kill "${timers[@]}" 2>/dev/null || true
find_reason
log "the ranks ended with $code ($reason)"
if noted=$(starts end --code "$code" --reason "$reason" --bad "$bad"); then
  outcome=$noted
else
  log "the end could not be noted; going by the exit code"
  case $code in
    0) outcome="done" ;;
    93) outcome=stop ;;
    *) outcome=again ;;
  esac
fi
read -r next exclude <<<"$outcome"
[[ $next != again ]] || start_again "$exclude" # or finds that it cannot
case $next in
  again) ;;
  "done") drop_successor ;;
  stop)
    code=93
    drop_successor
    ;;
  leave) ;; # requeueing a job that was cancelled would bring it back to life
esac
exit "$code"
