#!/usr/bin/env bash
# A real Slurm of several virtual nodes on one machine: to try slurm/ without a cluster, and for the tests.
#
#   bash tests/slurm/lab.sh up FOLDER [NODES]          start it; prints the line that makes Slurm's commands find it
#   bash tests/slurm/lab.sh node-kill FOLDER NODE      as when the node loses power: its daemon and all processes of its jobs
#   bash tests/slurm/lab.sh node-start FOLDER NODE     it comes back
#   bash tests/slurm/lab.sh down FOLDER                cancel all jobs and stop everything
#
# Nodes n1, n2, ... are of the partitions train (the default), urgent (preempts it) and idle (is preempted by it); c1 is a node for jobs
# without GPUs, in the partition cpu. Everything is in FOLDER and on the loopback: nothing in /etc, no systemd, no root needed. LAB_PORT
# (default 17600) and the next NODES + 1 ports must be free; LAB_CONF holds further lines of slurm.conf. Nodes share this machine's file
# system and name.
# needs: apt-get install slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 2
}

start_munge() {
  mkdir -p "$base/munge"
  if [[ ! -f $base/munge/key ]]; then
    (umask 077 && head -c 1024 /dev/urandom >"$base/munge/key")
  fi
  munged --force --key-file="$base/munge/key" --socket="$base/munge/socket" --seed-file="$base/munge/seed" \
    --pid-file="$base/pid/munged.pid" --log-file="$base/log/munged.log" --num-threads=2
}

# Waits are as short as Slurm allows, so that a lost node is noticed in seconds; no plugin needs cgroups or devices.
write_conf() {
  local nodes=$1 node host
  host=$(hostname -s)
  cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits as long as a credential is valid: two minutes by default, and on most clusters.
AuthInfo=cred_expire=5,socket=$base/munge/socket
SlurmctldPidFile=$base/pid/slurmctld.pid
SlurmdPidFile=$base/pid/slurmd-%n.pid
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
# Nodes may declare more than this machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdTimeout=8
SlurmctldTimeout=10
KillWait=5
ReturnToService=1
JobRequeue=1
# Jobs of two clusters on one machine have numbers, and so rendezvous ports (run.sh), of their own.
FirstJobId=$((port % 1000 * 40 + 1))
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/filetxt
JobCompLoc=$base/log/jobs.txt
CONF
  for ((node = 1; node <= nodes; node++)); do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=8 CoresPerSocket=8 RealMemory=4000"
  done >>"$SLURM_CONF"
  cat >>"$SLURM_CONF" <<CONF
NodeName=c1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + nodes + 1)) CPUs=32 CoresPerSocket=32 RealMemory=4000
PartitionName=train Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE PriorityTier=5 GraceTime=20
PartitionName=urgent Nodes=n[1-$nodes] MaxTime=INFINITE PriorityTier=10
PartitionName=idle Nodes=n[1-$nodes] MaxTime=INFINITE PriorityTier=1 GraceTime=2
PartitionName=cpu Nodes=c1 MaxTime=INFINITE PriorityTier=5
${LAB_CONF:-}
CONF
  printf 'CgroupAutomount=no\n' >"$base/cgroup.conf"
}

start_node() {
  mkdir -p "$base/spool/$1"
  rm -f "$base/pid/slurmd-$1.pid"
  slurmd -N "$1" -f "$SLURM_CONF"
}

up() {
  local nodes=${1:-3} node
  [[ ! -f $base/pid/slurmctld.pid ]] || die "$base has a cluster; take it down first"
  mkdir -p "$base"/{state,log,pid,spool}
  start_munge
  write_conf "$nodes"
  slurmctld -f "$SLURM_CONF"
  for ((node = 1; node <= nodes; node++)); do start_node "n$node"; done
  start_node c1
  for ((try = 0; try < 300; try++)); do
    if [[ $(sinfo --noheader --partition=train,cpu --states=idle --Node 2>/dev/null | wc -l) == $((nodes + 1)) ]]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.1
  done
  die "the nodes are not idle after 30 seconds; see $base/log"
}

# Processes of this cluster's jobs, told by their environment; on one node, where one is named.
job_processes() {
  local process environment
  for process in /proc/[0-9]*; do
    environment=$(tr '\0' '\n' 2>/dev/null <"$process/environ") 2>/dev/null || continue
    if grep -qx "SLURM_CONF=$SLURM_CONF" <<<"$environment" && grep -qx "SLURMD_NODENAME=${1:-.*}" <<<"$environment"; then
      echo "${process#/proc/}"
    fi
  done
}

node_kill() {
  local processes=() parents=() process parent
  mapfile -t processes < <(job_processes "$1")
  for process in "${processes[@]}"; do
    parent=$(awk '/^PPid:/ {print $2}' "/proc/$process/status" 2>/dev/null) || continue
    if [[ $(cat "/proc/$parent/comm" 2>/dev/null) == slurmstepd ]]; then
      parents+=("$parent")
    fi
  done
  kill -9 "$(<"$base/pid/slurmd-$1.pid")" "${parents[@]}" "${processes[@]}" 2>/dev/null || true # some end with their parents
}

down() {
  local file process
  scancel --state=PENDING --user="$(id -un)" 2>/dev/null || true
  scancel --user="$(id -un)" 2>/dev/null || true
  for ((try = 0; try < 100; try++)); do
    [[ -n $(squeue --noheader 2>/dev/null) ]] || break
    sleep 0.1
  done
  for file in "$base"/pid/slurmctld.pid "$base"/pid/slurmd-*.pid "$base"/pid/munged.pid; do
    process=$(cat "$file" 2>/dev/null) || continue
    if [[ $(cat "/proc/$process/comm" 2>/dev/null) =~ ^(slurm|munge) ]]; then
      kill "$process"
    fi
    rm -f "$file"
  done
  job_processes | xargs --no-run-if-empty kill -9 2>/dev/null || true
}

command=${1:-}
base=$(realpath -m "${2:?FOLDER is needed; bash tests/slurm/lab.sh up FOLDER}")
port=${LAB_PORT:-17600}
export SLURM_CONF=$base/slurm.conf
case $command in
  up) up "${3:-3}" ;;
  node-kill) node_kill "${3:?NODE is needed, such as n2}" ;;
  node-start) start_node "${3:?NODE is needed, such as n2}" ;;
  down) down ;;
  *) die "$command is none of up, node-kill, node-start, down" ;;
esac
