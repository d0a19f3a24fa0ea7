#!/usr/bin/env bash
# The batch script of one evaluation, on one node:   sbatch OPTIONS slurm/evaluate_step.sh HF_DIR RESULT     by evaluations.py
#
# The command is SMOL_EVALUATE of env.sh. It gets HF_DIR --config C --output FILE and writes {"results": {NAME: NUMBER}} there, by
# names that begin with eval/; or it makes a folder of FILE with that in results.json, as `python -m evaluation run` does, whose
# exit code 1 says that some tasks could not be reached. It may be preempted and started again at any time: RESULT gets its name
# when it is whole, and the folder lies beside it.
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
rm -rf "$partial" # of a start before a requeue, which has this number too
"${wrap[@]}" "${evaluate[@]}" "$model" --config "$SMOL_CONFIG" --output "$partial" || [[ $? -eq 1 && -f $partial/results.json ]]
if [[ -d $partial ]]; then
  rm -rf "${result%.json}"
  mv "$partial" "${result%.json}"
  cp "${result%.json}/results.json" "$partial"
fi
mv "$partial" "$result"
