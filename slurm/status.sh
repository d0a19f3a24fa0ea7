#!/usr/bin/env bash
# All runs on a page (docs/watching.md):   bash slurm/status.sh [RUN_ROOT]
#
#   RUN_ROOT is a folder of runs or one run; by default what slurm/env.sh, or the file that SMOL_ENV names, says.
set -euo pipefail

slurm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/lib.sh
source "$slurm/lib.sh"

load_env "${SMOL_ENV:-$slurm/env.sh}"
PYTHONPATH=$(dirname "$slurm") exec "$SMOL_PYTHON" -P -m slurm.status \
  "${1:-${RUN_ROOT:?is not set in env.sh; name the folder of your runs}}"
