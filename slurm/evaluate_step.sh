#!/usr/bin/env bash
# The batch script of one evaluation, on one node:   sbatch OPTIONS slurm/evaluate_step.sh HF_DIR RESULT     by evaluations.py
#
# The command is SMOL_EVALUATE of env.sh. It gets HF_DIR --config C --output FILE and writes {"results": {NAME: NUMBER}} there, by
# names that begin with eval/. It may be preempted and started again at any time: RESULT gets its name when it is whole.
#SBATCH --open-mode=append       # a start after a requeue goes on in the same log
set -euo pipefail

model=$1 result=$2
if [[ -e $result ]]; then
  echo "$result is there: nothing to do"
  exit
fi
read -ra wrap <<<"${SMOL_WRAP:-}"
read -ra evaluate <<<"${SMOL_EVALUATE:-$SMOL_PYTHON -m evaluation held-out}"
partial=$result-$SLURM_JOB_ID.partial
mkdir -p "$(dirname "$result")"
"${wrap[@]}" "${evaluate[@]}" "$model" --config "$SMOL_CONFIG" --output "$partial"
mv "$partial" "$result"
