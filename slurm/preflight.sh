#!/usr/bin/env bash
# Are the nodes of this job fit for it? Sourced by run.sh and jobs/preflight.sh, inside a job, after lib.sh.
#
# checks of every node  ->  where all passed, all-reduces of all ranks  ->  "ok", "bad n2,n5" or "stop" (docs/preflight.md)
set -euo pipefail

# preflight LIMITS: prints that line; what was found goes to the log and to RUN/slurm/preflight/JOB-RESTART. LIMITS is a file as
# SMOL_PREFLIGHT names it. MASTER_ADDR and MASTER_PORT must be set.
preflight() {
  local limits=$1 out nodes line config=$SMOL_CONFIG
  # shellcheck disable=SC2154 # load_job sets it
  [[ $job_recipe == no ]] || config="" # its data and disk space are not those of pre-training
  [[ $limits == /* ]] || limits=$SMOL_CODE/$limits # of the copy of the code
  out=$SMOL_RUN/slurm/preflight/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
  nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
  mkdir -p "$out"
  log "preflight of $nodes; findings go to $out"
  # One task a node with all its CPUs and GPUs; one that fails does not take the others along.
  preflight_step --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 \
    --cpus-per-task="$((SMOL_CPUS_PER_RANK * SMOL_RANKS_PER_NODE))" -- node --out "$out" --limits "$limits" --config "$config"
  line=$("$SMOL_PYTHON" -m slurm.preflight verdict --out "$out" --nodes "$nodes" --step node) || line=stop
  if [[ $line == ok ]]; then # with a sick node among them the ranks would hang
    # A port of its own: the ranks that train come next, and the one of this store may still be closing.
    MASTER_PORT=$((MASTER_PORT - 10000)) preflight_step --kill-on-bad-exit=1 --cpus-per-task="$SMOL_CPUS_PER_RANK" -- \
      network --out "$out" --limits "$limits"
    line=$("$SMOL_PYTHON" -m slurm.preflight verdict --out "$out" --nodes "$nodes" --step network) || line=stop
  fi
  log "preflight: $line"
  echo "$line"
}

# preflight_step OPTIONS -- ARGUMENTS: under srun, as the ranks will run. How it ended is seen by what it left. A process that
# hangs in the driver cannot even be killed, so srun is.
preflight_step() {
  local options=() further=() wrap=()
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  read -ra further <<<"${SMOL_SRUN:-}"
  read -ra wrap <<<"${SMOL_WRAP:-}"
  timeout --kill-after=30 "$((${SMOL_PREFLIGHT_MINUTES:-15} * 60))" srun --label "${options[@]}" "${further[@]}" \
    "${wrap[@]}" "$SMOL_PYTHON" -m slurm.preflight "$@" >&2 || log "the step ended with $?"
}
