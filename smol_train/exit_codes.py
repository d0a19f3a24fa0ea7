"""How everything that trains says what is to become of it. Anything else that a process ends with is a crash."""

import os
import sys

from smol_config import UserError

DONE = 0
"""The run is complete."""
REQUEUE = 85
"""Start it again: a signal, a time limit, a hang, a device that is suspected."""
REFUSED = 93
"""Do not start it again before the configuration or the data is mended, or because RUN/stop asked for it."""


def refuse(error: UserError) -> int:
    """Tell on stderr what the user has to mend, naming the rank where it is not the main one; returns REFUSED."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    print(f"error: {error}" if rank == "0" else f"error on rank {rank}: {error}", file=sys.stderr)
    return REFUSED
