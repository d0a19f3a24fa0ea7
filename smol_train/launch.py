"""Where this process stands among those that srun or torchrun started: its rank, its node. Neither torch nor Megatron-Core."""

import os
import socket


def launched_as() -> tuple[int, int, int]:
    """(rank, processes, rank on this host), as torchrun or srun says in the environment; a lone process is 0 of 1."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1") if "MASTER_ADDR" in os.environ else "1"))
    return rank, world, int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def host_name() -> str:
    """This node as Slurm calls it, so that it can be named to Slurm; else as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
