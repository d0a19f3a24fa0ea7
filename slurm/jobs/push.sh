#!/usr/bin/env bash
# Job: a Hugging Face folder to the Hub, S3 or another URL (docs/publishing.md). Folder and target stand behind --:
#   bash slurm/submit.sh push C.yaml -- RUN/hf/step_40000 my-org/model
set -euo pipefail

one_cpu_node
# shellcheck disable=SC2034 # run.sh reads it
job_command=("$SMOL_PYTHON" -m conversion push)
