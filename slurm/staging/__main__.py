"""The command: brings the datasets that a run is about to read to this node's own disk.

    python -m slurm.staging --config C.yaml --run RUN --out DIR [--verify]

Settings, from slurm/env.sh: SMOL_LOCAL_DATA, a folder on each node's own disk (%N becomes the node's name; empty: nothing to
do), SMOL_DATA_SOURCE, a folder or s3://BUCKET/PREFIX (empty: DATA_ROOT), and DATA_ROOT. One srun task a node, all with the same
DIR, which is new for each step; started without Slurm, it loads this machine. Exit codes: 0, this node has what it needs, and
the others are through as well; 85, the source did not answer for long; 93, what the sentence says must be mended first.
"""

import argparse
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slurm.staging.disk import Disk
from slurm.staging.load import load_node
from slurm.staging.needs import StagingError, find_needs
from slurm.staging.peers import Step
from slurm.staging.sources import Folder, Silent, Source, open_source
from smol_config import UserError, load
from smol_train.config import RunConfig
from smol_train.exit_codes import DONE, REFUSED, REQUEUE

USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Faults of a disk that are as they are on the next start too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.staging", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, metavar="C.yaml")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder: its newest checkpoint tells the stage")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the nodes of the step find each other")
    parser.add_argument("--verify", action="store_true", help="read every byte of what is there, and fetch again what is wrong")
    options = parser.parse_args(arguments)
    step = Step(options.out)
    local = os.environ.get("SMOL_LOCAL_DATA", "").replace("%N", step.node)
    if not local:
        step.say("SMOL_LOCAL_DATA is empty: data is read where it is")
        return DONE
    for number in (signal.SIGUSR1, signal.SIGTERM):  # what is on disk by then is kept, so there is nothing to save first
        signal.signal(number, lambda *_: os._exit(REQUEUE))
    disk = Disk(Path(local).absolute())
    with step.serving(disk.root):
        code = _load(options, disk, step)
        step.end()
    return code


def _load(options: argparse.Namespace, disk: Disk, step: Step) -> int:
    """Returns the exit code, having said why it is not 0."""
    try:
        data_root, source, lender = _places(disk)
        needs = find_needs(load(RunConfig, options.config), options.run, data_root)
        with _alone(disk.root, step):
            load_node(needs, source, lender, disk, step, options.verify)
    except Silent as error:
        step.say(f"{error}; giving up for now, to be started again")
        return REQUEUE
    except UserError as error:
        step.say(f"error: {error}")
        return REFUSED
    except OSError as error:
        if error.errno not in USERS_TO_MEND:
            raise
        step.say(f"error: {error.filename or disk.root}: {error.strerror}; mend that, or name another disk in SMOL_LOCAL_DATA")
        return REFUSED
    return DONE


def _places(disk: Disk) -> tuple[Path, Source, Path]:
    """DATA_ROOT, the source, and the folder that all nodes see."""
    root = os.environ.get("DATA_ROOT")
    if not root:
        raise StagingError("DATA_ROOT is not set; slurm/env.sh.example says what it is")
    source = open_source(os.environ.get("SMOL_DATA_SOURCE") or root)
    lender = source.root if isinstance(source, Folder) else Path(root)
    if disk.root.resolve() in (lender.resolve(), Path(root).resolve()):
        raise StagingError(f"SMOL_LOCAL_DATA={disk.root} is where the data comes from; name a folder on the node's own disk")
    return Path(root), source, lender.absolute()


@contextmanager
def _alone(root: Path, step: Step) -> Iterator[None]:
    """One job at a time loads a node."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step.say(f"another job loads {root}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
