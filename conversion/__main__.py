"""Entry of `python -m conversion`: run one command, turn a user's mistake into one sentence and an exit code.

Exit codes: 0 done, 1 the two sides are not equal, 2 bad input (nothing changed; export: something was not exported).
"""

import argparse
import ctypes
import os
import sys
import warnings
from collections.abc import Sequence

from conversion import ParityError
from conversion.arguments import build_parser
from smol_console import exit_code, tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    try:
        options.run(options)
    except ParityError as error:
        tell(error)
        return 1
    return 0


def _alone_on_the_cpu() -> None:
    """Make this process a world of one without GPUs, also inside a job: parity in fp32 is then the same everywhere, and no
    memory of a training GPU is taken. What the libraries then say about missing GPU packages is not for the user."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(megatron\.core|torch\.distributed\.checkpoint)\.")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def _give_freed_memory_back() -> None:
    """Have glibc return every freed block of a megabyte or more at once. It keeps those below 32 MB, such as a layer's smaller
    matrices: with one in memory at a time, a model of 3 billion parameters took 3.3 GB instead of 1.1 (measured)."""
    m_mmap_threshold = -3  # malloc.h
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**20)


if __name__ == "__main__":  # saving a checkpoint spawns a process that imports this module again
    _alone_on_the_cpu()
    _give_freed_memory_back()
    sys.exit(main())
