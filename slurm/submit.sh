#!/usr/bin/env bash
# Submits a job:   bash slurm/submit.sh [--dry-run | --test-only | --once] JOB CONFIG [section.key=value ...] [-- OPTIONS]
#
#   JOB is a file of slurm/jobs/. The configuration is checked first. Code, configuration and settings are copied into the run's
#   folder (train.output_dir), and the job runs the copies: what you edit while it waits or runs changes nothing. Settings of
#   the cluster: slurm/env.sh, or the file that SMOL_ENV names. OPTIONS go to the job's command.
#
#   --dry-run      print the plan of the run and the sbatch command; write and submit nothing
#   --test-only    ask Slurm when the job could start; write and submit nothing
#   --once         submit nothing where a job of this kind and run, from an earlier submit, waits or runs
#
# example: bash slurm/submit.sh pretrain configs/smollm3/pretrain.yaml train.seed=7
set -euo pipefail

slurm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$slurm")
# shellcheck source=slurm/lib.sh
source "$slurm/lib.sh"

parse_arguments() {
  mode=submit once="" overrides=() arguments=()
  while [[ ${1:-} == -* ]]; do
    case $1 in
      --dry-run) mode=dry-run ;;
      --test-only) mode=test-only ;;
      --once) once=yes ;;
      -h | --help)
        sed -n '2,/^set -/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p; s/^#$//p'
        exit 0
        ;;
      *) die 2 "$1 is no option; see bash slurm/submit.sh --help" ;;
    esac
    shift
  done
  (($# >= 2)) || die 2 "JOB and CONFIG are needed; see bash slurm/submit.sh --help"
  job=$1 config=$2
  shift 2
  while (($#)) && [[ $1 != -- ]]; do
    overrides+=("$1")
    shift
  done
  arguments=("${@:2}")
  [[ -f $slurm/jobs/$job.sh ]] || die 2 "JOB $job is none of: $(basename --suffix=.sh "$slurm"/jobs/*.sh | paste -sd' ')"
}

# Where the run is, by its configuration, which is checked on the way. For training, layout and batch must fit the ranks.
run_folder() {
  local checks=()
  [[ $job_trains == no ]] || checks=(--ranks "$((SMOL_NODES * SMOL_RANKS_PER_NODE))")
  [[ $job_recipe == no ]] || checks+=("--recipe=${arguments[0]:-}")
  PYTHONPATH=$repository "$SMOL_PYTHON" -P -m slurm.run_folder "$config" "${checks[@]}" "$@" -- "${overrides[@]}"
}

# Options of sbatch, one an element. Those that never change stand in run.sh.
find_options() {
  local further=()
  options=(
    "--job-name=$job-$(basename "$run")-$stamp" # one name for all jobs of a submission: chains go by it
    "--output=$run/slurm/logs/$job-%j.log"
    "--chdir=$PWD" # relative paths of the configuration mean what they mean here
    "--export=ALL"
    "--nodes=$SMOL_NODES"
    "--ntasks-per-node=$SMOL_RANKS_PER_NODE"
    "--cpus-per-task=$SMOL_CPUS_PER_RANK"
    "--time=$SMOL_TIME"
    "--signal=B:USR1@$SMOL_SAVE_SECONDS" # to run.sh alone, which asks the ranks
  )
  if [[ $SMOL_REQUEUE == requeue ]]; then
    options+=(--requeue) # also where the cluster's default is not to, when a node dies
  else
    options+=(--no-requeue) # the successor takes over, whatever the end was
  fi
  [[ $SMOL_GPUS_PER_NODE == 0 ]] || options+=("--gpus-per-node=$SMOL_GPUS_PER_NODE")
  [[ -z ${SMOL_ACCOUNT:-} ]] || options+=("--account=$SMOL_ACCOUNT")
  [[ -z ${SMOL_PARTITION:-} ]] || options+=("--partition=$SMOL_PARTITION")
  [[ -z ${SMOL_QOS:-} ]] || options+=("--qos=$SMOL_QOS")
  [[ -z ${SMOL_RESERVATION:-} ]] || options+=("--reservation=$SMOL_RESERVATION")
  read -ra further <<<"${SMOL_SBATCH:-}"
  options+=("${further[@]}")
}

# Names of the files that make up the code: what git knows and what is new; without git, all but what .gitignore has too.
list_code() {
  cd "$repository"
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard
  else
    find . -type d \( -name '.venv*' -o -name runs -o -name __pycache__ -o -name '.*_cache' \) -prune -o ! -type d -print0
  fi
}

copy_code() {
  local inside # the run's folder, where it is inside the repository
  inside=$(realpath -m --relative-to="$repository" "$run")
  mkdir -p "$code/submission" "$run/slurm/logs"
  list_code | tar -C "$repository" --exclude="$inside" --exclude="./$inside" --ignore-failed-read --null --files-from=- -cf - |
    tar -C "$code" -xf -
  git -C "$repository" describe --always --dirty --abbrev=40 >"$code/submission/commit" 2>/dev/null || true
  run_folder --write "$code/submission/config.yaml" >/dev/null
  cp "$env_file" "$code/submission/env.sh"
  printf '%s\n' "${options[@]}" >"$code/submission/sbatch.options"
  : >"$code/submission/arguments"
  ((${#arguments[@]} == 0)) || printf '%s\n' "${arguments[@]}" >"$code/submission/arguments"
}

# The ids in the queue of what was submitted before for this run.
queued_before() {
  local name names=() stamps=("$run"/slurm/code/*/)
  for name in "${stamps[@]}"; do
    names+=("$job-$(basename "$run")-$(basename "$name")")
  done
  squeue --noheader --format=%i --name="$(IFS=, && echo "${names[*]}")" ||
    die 2 "squeue does not answer (its message stands above), so that there may be such a job; submit again later"
}

parse_arguments "$@"
env_file=${SMOL_ENV:-$slurm/env.sh}
load_env "$env_file"
export SMOL_RUN="" SMOL_CODE=$repository SMOL_CONFIG=$config
load_job "$slurm" "$job"
run=$(run_folder) || exit 2
stamp=$(date -u +%Y%m%d-%H%M%S)-$$
code=$run/slurm/code/$stamp
find_options
command=(sbatch --parsable "${options[@]}" "$code/slurm/run.sh" "$run" "$code" "$job")

if [[ $mode == dry-run ]]; then
  if [[ $job_trains == yes && $job_recipe == no ]]; then
    PYTHONPATH=$repository "$SMOL_PYTHON" -P -m smol_train.plan --config "$config" --gpus "$((SMOL_NODES * SMOL_RANKS_PER_NODE))" -- "${overrides[@]}"
    echo
  fi
  printf '%s' "${command[0]}"
  printf ' \\\n  %q' "${command[@]:1}"
  echo
  exit
fi
command -v sbatch >/dev/null || die 2 "there is no sbatch here; run this on a login node of the cluster"
if [[ $mode == test-only ]]; then
  sbatch --test-only "${options[@]}" "$slurm/run.sh" || die 2 "Slurm would refuse the job (its message stands above); mend $env_file"
  exit
fi
if [[ -n $once ]]; then
  before=$(queued_before) || exit 2
  if [[ -n $before ]]; then
    echo "job ${before%%[[:space:]]*}: $job of $run is in the queue already"
    exit
  fi
fi
copy_code
if ! submitted=$("${command[@]}"); then
  rm -rf "$code"
  die 2 "Slurm refused the job (its message stands above); mend $env_file"
fi
id=${submitted%%;*}
cat <<TEXT
job $id: $job of $run
log     $run/slurm/logs/$job-$id.log
stop    touch $run/stop
cancel  scancel --name=$job-$(basename "$run")-$stamp        (saves nothing)
code    $code
TEXT
