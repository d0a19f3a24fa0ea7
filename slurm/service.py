"""What the commands share that work beside a run for as long as it trains: upload.py, evaluations.py; watch.py its end."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from conversion.service import Stop, stop_signals
from conversion.watching import sole_worker, wait_for
from smol_console import BAD_INPUT, exit_code
from smol_train.exit_codes import REFUSED


def parser_for(module: str, docstring: str | None) -> argparse.ArgumentParser:
    """Of `python -m slurm.MODULE CONFIG [--watch] [section.key=value ...]`; to be used with parse_intermixed_args."""
    parser = argparse.ArgumentParser(prog=f"python -m slurm.{module}", description=(docstring or "").partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--watch", action="store_true", help="go on until the run is done; without it: what is there now")
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="between two looks (default 60)")
    return parser


def work_beside(run: Path, options: argparse.Namespace, lock: str, who: str, work: Callable[[Stop], None]) -> None:
    """Do `work` alone, as the one that holds `lock` in the folder of the run, which --watch waits for.

    Raises ConversionError where another, `who` in its words, holds the lock.
    """
    with stop_signals() as stop:
        if run.exists() or (options.watch and wait_for(run, options.every, stop)):
            with sole_worker(run / lock, who):
                work(stop)


def service_exit_code(run: Callable[[], None]) -> int:
    """0, or what a fault ends the command with: in a job 93, so that it is not started again."""
    return exit_code(run, REFUSED if "SLURM_JOB_ID" in os.environ else BAD_INPUT)
