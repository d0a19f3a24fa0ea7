#!/usr/bin/env bash
# Does to a run on purpose what happens to long runs by itself (docs/faults.md):   bash slurm/faults.sh [--yes] FAULT RUN [...]
#
#   kill-rank RUN [RANK]                    SIGKILL to the trainer of a rank; by default the last one
#   hang-rank RUN [RANK]                    SIGSTOP, for good
#   slow-rank RUN [RANK [SECONDS]]          stopped for four fifths of the time, for a minute
#   kill-node RUN [NODE]                    lost to Slurm; by default the job's last one. The first one runs run.sh
#   fill-disk RUN [MEGABYTES [SECONDS]]     a file in RUN leaves 100 megabytes free, for a minute
#   fill-disk RUN --undo                    ends that, or removes the file that a killed one left
#   corrupt-latest RUN                      one byte of the newest whole checkpoint changes, which is seen when it is loaded
#
# RUN is the run's folder (train.output_dir). On a cluster that is not tests/slurm/lab.sh's, --yes is needed. Every fault is a line
# of RUN/slurm/faults.jsonl, from which the time to recover counts.
set -euo pipefail

slurm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/lib.sh
source "$slurm/lib.sh"

FAULTS="kill-rank hang-rank slow-rank kill-node fill-disk corrupt-latest"

parse_arguments() {
  local most=3
  yes=no
  if [[ ${1:-} == --yes ]]; then
    yes=yes
    shift
  fi
  fault=${1:-} run=${2:-} target=${3:-} seconds=${4:-60}
  [[ " $FAULTS " == *" $fault "* && -n $fault ]] || die 2 "FAULT $fault is none of: $FAULTS"
  case $fault in
    corrupt-latest) most=2 ;;
    slow-rank | fill-disk) most=4 ;;
  esac
  (($# >= 2 && $# <= most)) || die 2 "$fault does not take $(($# - 1)) arguments; the first lines of ${BASH_SOURCE[0]} say which"
  run=$(realpath --no-symlinks --canonicalize-missing "$run") # its name is part of the jobs' names, as it was given
  [[ -d $run ]] || die 2 "RUN $run is not there; give the folder of a run (train.output_dir)"
  [[ $fault != *-rank || $target =~ ^[0-9]*$ ]] || die 2 "RANK $target is no whole number"
  [[ $seconds =~ ^[0-9]{1,6}$ ]] || die 2 "SECONDS=$seconds is no whole number"
}

# A cluster of lab.sh: its configuration says so, and lies where only lab.sh puts it.
on_the_lab() {
  grep -qsx ClusterName=lab "${SLURM_CONF:-}" && [[ -f ${SLURM_CONF%/*}/pid/slurmctld.pid ]]
}

# note TARGET [REMEDY]: says what is done, and notes it.
note() {
  mkdir -p "$run/slurm"
  printf '{"time": "%s", "fault": "%s", "target": "%s"}\n' "$(date -u --iso-8601=seconds)" "$fault" "$1" \
    >>"$run/slurm/faults.jsonl"
  echo "$fault: $1${2:+; $2}"
}

# --- where the run is ------------------------------------------------------------------------------------------------------

# Sets job and nodes: the run's job that trains, and where. submit.sh calls it JOB-RUN-STAMP.
find_job() {
  local queue id name file
  command -v squeue >/dev/null || die 2 "there is no squeue here; run this on a login node of the cluster"
  queue=$(retry squeue --noheader --states=RUNNING --format='%i %j') || die 2 "squeue does not answer; try again later"
  job=""
  while read -r id name; do
    file=$run/slurm/code/${name##*"-${run##*/}-"}/slurm/jobs/${name%"-${run##*/}-"*}.sh
    if grep -qs '^job_trains=yes' "$file"; then job=$id; fi
  done <<<"$queue"
  [[ -n $job ]] || die 2 "no job that trains $run is running; submit it, or wait until squeue shows it as R"
  nodes=$(scontrol show hostnames "$(squeue --noheader --jobs="$job" --format=%N)" | paste -sd,)
}

# Runs act_on_rank on every node of the job, in a step beside that of the ranks: where a rank is, only the nodes know.
send_to_rank() {
  local count
  find_job
  count=$(tr ',' '\n' <<<"$nodes" | wc -l)
  target=${target:-$(($(scontrol show job "$job" --oneliner | grep -o ' NumTasks=[0-9]*' | cut -d= -f2) - 1))}
  set +o pipefail # the job, and this step with it, may end of the fault before the step is over
  srun --jobid="$job" --overlap --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --cpus-per-task=1 \
    bash "$slurm/faults.sh" --on-node "$fault" "$run" "$target" "$seconds" "$job" </dev/null | grep . ||
    die 2 "rank $target of job $job has no process on $nodes; it may not have been started yet"
  set -o pipefail
}

# --- on a node -------------------------------------------------------------------------------------------------------------

# Prints the trainer of the rank, if it is on this node. Its heartbeat names the process; before there is one, it is what rank.sh
# has started. The process must be the job's in any case: an old heartbeat may name somebody else's.
rank_process() {
  local beat found process started="" parent command
  beat=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$run/heartbeat/rank_$target.json" 2>/dev/null) || true
  found=$(grep -lszx "SLURM_JOB_ID=$job" /proc/[0-9]*/environ | xargs --no-run-if-empty grep -lszx "SLURM_PROCID=$target" |
    xargs --no-run-if-empty grep -lszx "SLURMD_NODENAME=$SLURMD_NODENAME" | cut -d/ -f3) || true # some end meanwhile
  for process in $found; do
    if [[ $process == "$beat" ]]; then
      started=$process
      break
    fi
    parent=$(awk '/^PPid:/ {print $2}' "/proc/$process/status" 2>/dev/null) || continue
    mapfile -d '' -t command 2>/dev/null <"/proc/$parent/cmdline" || continue
    [[ ${command[1]:-} != */slurm/rank.sh ]] || started=$process
  done
  echo "$started"
}

act_on_rank() {
  local process
  process=$(rank_process)
  [[ -n $process ]] || return 0
  case $fault in
    kill-rank)
      note "rank $target on $SLURMD_NODENAME, process $process"
      kill -KILL "$process"
      ;;
    hang-rank)
      note "rank $target on $SLURMD_NODENAME, process $process" "kill -CONT $process there lets it go on"
      kill -STOP "$process"
      ;;
    slow-rank)
      note "rank $target on $SLURMD_NODENAME, process $process, for $seconds seconds"
      slow_down "$process"
      ;;
  esac
}

# slow_down PROCESS: whatever ends this, the process goes on.
slow_down() {
  # shellcheck disable=SC2064 # of this process
  trap "kill -CONT $1 2>/dev/null || true" EXIT
  trap 'exit 1' TERM INT HUP
  SECONDS=0
  while ((SECONDS < seconds)) && kill -STOP "$1" 2>/dev/null; do
    sleep 0.4
    kill -CONT "$1" 2>/dev/null || break
    sleep 0.1
  done
}

# --- from here -------------------------------------------------------------------------------------------------------------

kill_node() {
  local node
  find_job
  node=${target:-${nodes##*,}}
  [[ ,$nodes, == *",$node,"* ]] || die 2 "NODE $node is not of job $job; it runs on $nodes"
  if on_the_lab; then
    bash "$slurm/../tests/slurm/lab.sh" node-kill "${SLURM_CONF%/*}" "$node"
    note "$node" "bash tests/slurm/lab.sh node-start ${SLURM_CONF%/*} $node brings it back"
  else
    scontrol update nodename="$node" state=down reason="slurm/faults.sh of $(id -un)" ||
      die 2 "Slurm does not set $node down for you (its message stands above); ask an operator to, or to switch it off"
    note "$node" "scontrol update nodename=$node state=resume brings it back"
  fi
}

fill_disk() {
  local file=$run/slurm/fill-disk free leave=${target:-100}
  if [[ $leave == --undo ]]; then
    [[ -e $file ]] || die 2 "$file is not there: nothing to undo"
    rm "$file"
    return
  fi
  [[ $leave =~ ^[0-9]{1,12}$ ]] || die 2 "MEGABYTES=$leave is no whole number"
  [[ ! -e $file ]] || die 2 "$file is there, from a fill-disk that goes on or was killed; --undo removes it"
  free=$(df --output=avail --block-size=1M "$run" | tail -n 1)
  ((free > leave)) || die 2 "$run has $((free)) megabytes free, not more than $leave; ask for fewer to be left"
  note "$((free - leave)) megabytes, so that $leave are free, for $seconds seconds"
  trap 'rm -f "$run/slurm/fill-disk"' EXIT # where $file is out of scope
  trap 'exit 1' TERM INT HUP
  fallocate --posix --length "$((free - leave))MiB" "$file" # written where the file system cannot reserve
  SECONDS=0
  while ((SECONDS < seconds)) && [[ -e $file ]]; do sleep 0.2; done
}

corrupt_latest() {
  local checkpoint size file middle byte
  checkpoint=$(find "$run" -mindepth 2 -maxdepth 2 -name COMPLETE -printf '%h\n' | { grep -E '/iter_[0-9]{7,}$' || true; } |
    sort -V | tail -n 1)
  [[ -n $checkpoint ]] || die 2 "$run has no whole checkpoint; wait for the first"
  # The largest file; its marker lists neither itself nor state.json and PIN.
  read -r size file < <(find "$checkpoint" -type f ! -name COMPLETE ! -name state.json ! -name PIN -printf '%s %p\n' |
    sort -n | tail -n 1) || true
  ((${size:-0} > 0)) || die 2 "$checkpoint holds nothing that could be damaged"
  middle=$((size / 2))
  byte=$(od --address-radix=n --format=u1 --skip-bytes="$middle" --read-bytes=1 "$file")
  note "${file#"$run/"}, byte $middle"
  printf '%b' "\\x$(printf %02x "$((byte ^ 255))")" | dd of="$file" bs=1 seek="$middle" conv=notrunc status=none
}

if [[ ${1:-} == --on-node ]]; then # by send_to_rank
  fault=$2 run=$3 target=$4 seconds=$5 job=$6
  act_on_rank
  exit
fi
parse_arguments "$@"
[[ $yes == yes ]] || on_the_lab ||
  die 2 "$fault is real on this cluster; give --yes if $run, and whoever shares what it hits, may suffer it"
case $fault in
  *-rank) send_to_rank ;;
  kill-node) kill_node ;;
  fill-disk) fill_disk ;;
  corrupt-latest) corrupt_latest ;;
esac
