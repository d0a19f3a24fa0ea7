"""`prefetch`: what a suite's tasks need of the Hub, into the caches that a node without internet reads.

    suite --tasks.py--> each task built once: its datasets and metrics are downloaded --> the caches below HF_HOME

Run it where there is internet and on a file system that the nodes see. There `run` needs HF_HUB_OFFLINE=1 and the same HF_HOME.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from evaluation.suite import load_suite
from smol_console import Progress, add_command

CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE")
"""Environment variables that say where the caches are: all below HF_HOME, but for those that are set."""


def prefetch(options: argparse.Namespace) -> int:
    """Fetch, print where it is, name what was not reached: 1 then, else 0.

    Raises UserError for a suite that is none and tasks that nobody knows.
    """
    suite = load_suite(options.suite, options.overrides)
    import datasets.config
    from huggingface_hub import constants

    from evaluation.tasks import fetch

    names = {task.name for task in suite.tasks}
    missing = 0
    with Progress("prefetch", "tasks", len(names)) as progress:
        for name, reason in fetch(suite, options.model):
            print(f"{name}: {'there' if reason is None else f'not there: {reason}'}", flush=True)
            missing += reason is not None
            progress.advance()
    print(f"datasets: {datasets.config.HF_DATASETS_CACHE}\nfiles of the Hub: {constants.HF_HUB_CACHE}")
    settings = [f"{name}={os.environ[name]}" for name in CACHES if name in os.environ] or [f"HF_HOME={constants.HF_HOME}"]
    print(f"on nodes without internet: export HF_HUB_OFFLINE=1 {' '.join(settings)}", flush=True)
    if missing:
        print(f"{missing} of {len(names)} tasks are not there; give the command again, or take them out", file=sys.stderr)
    return 1 if missing else 0


def add_parser(commands: Any) -> None:
    """The parser of `prefetch`."""
    command = add_command(
        commands,
        "prefetch",
        "Download what a suite's tasks need, of both uses, for nodes without internet.",
        "python -m evaluation prefetch --suite evaluation/suites/smollm3_base.yaml",
    )
    command.add_argument("--suite", metavar="S.yaml", type=Path, required=True, help="as run takes it, key=value too")
    command.add_argument("--model", metavar="HF_DIR", type=Path, help="for tasks whose questions depend on the tokenizer")
    command.set_defaults(run=prefetch)
