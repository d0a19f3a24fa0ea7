#!/usr/bin/env bash
# Functions that submit.sh, run.sh and the jobs share. Sourced, never run.
set -euo pipefail

log() {
  printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >&2
}

# die CODE SENTENCE: what is wrong, which value, what to do. The code is 2 before a job, 93 (do not start again) inside one.
die() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}

# Settings of the cluster, from a copy of env.sh.example that a person has edited.
load_env() {
  local file=$1 name
  [[ -f $file ]] || die 2 "$file is not there; copy slurm/env.sh.example to it and go through the lines marked EDIT"
  set -a # what it sets is for the job's programs too
  # shellcheck source=slurm/env.sh.example
  source "$file"
  set +a
  for name in SMOL_{NODES,RANKS_PER_NODE,GPUS_PER_NODE,CPUS_PER_RANK,TIME,SAVE_SECONDS,MAX_RESTARTS,REQUEUE,PYTHON}; do
    [[ -n ${!name:-} ]] || die 2 "$name is not set in $file; slurm/env.sh.example says what it is"
  done
  [[ $SMOL_REQUEUE =~ ^(requeue|chain)$ ]] || die 2 "SMOL_REQUEUE=$SMOL_REQUEUE in $file is neither requeue nor chain"
  [[ -x $SMOL_PYTHON ]] || die 2 "SMOL_PYTHON=$SMOL_PYTHON in $file is no program; name the python of your environment"
}

# load_job FOLDER JOB: its file sets job_command; job_trains=yes where checkpoints of the run are its progress; job_recipe=yes where the
# configuration is a recipe's of post-training. A job that is not one task a rank defines run_ranks, in place of run.sh's.
# shellcheck disable=SC2034 # submit.sh and run.sh read them
load_job() {
  job_trains=no job_recipe=no
  job_command=()
  # shellcheck source=slurm/jobs/pretrain.sh
  source "$1/jobs/$2.sh"
}

# For a job's file: one task on one node without GPUs, in the partition for such jobs.
# shellcheck disable=SC2034 # submit.sh and run.sh read them
one_cpu_node() {
  SMOL_NODES=1 SMOL_RANKS_PER_NODE=1 SMOL_GPUS_PER_NODE=0
  SMOL_CPUS_PER_RANK=${SMOL_CPU_CORES:-8} SMOL_TIME=${SMOL_CPU_TIME:-$SMOL_TIME}
  SMOL_PARTITION=${SMOL_CPU_PARTITION:-} SMOL_SBATCH=${SMOL_CPU_SBATCH:-} SMOL_RESERVATION=""
}

# set_launcher [OPTION...]: sets launcher, what starts a command as one task a rank, where srun's OPTIONs say nothing else. A crash
# takes the other ranks along at once; after an agreed end they have two minutes to finish theirs. --cpus-per-task: srun does
# not take it over from sbatch.
# shellcheck disable=SC2034
set_launcher() {
  local options=()
  read -ra options <<<"${SMOL_SRUN:-}"
  launcher=(srun --kill-on-bad-exit=1 --wait=120 --label "--cpus-per-task=$SMOL_CPUS_PER_RANK" "${options[@]}" "$@"
    bash "$SMOL_CODE/slurm/rank.sh")
}

# retry COMMAND...: asks again where Slurm's controller does not answer, as it happens when it is busy or fails over.
retry() {
  local try
  for try in 1 2 3 4 5; do
    "$@" && return
    log "attempt $try of 5 failed: $*"
    sleep "$((try * 2))"
  done
  return 1
}
