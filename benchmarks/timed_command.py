"""Time a command with all the processes that it starts: the clock's seconds and the CPU's, printed as JSON.

    python -m benchmarks.timed_command CORES MODULE ARGUMENT...

The command runs as `python -m MODULE ARGUMENT...` on the first CORES cores that this process may use. What it leaves running (a
forkserver ends after the process that started it) is waited for, so that its CPU seconds count.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Returns the command's exit code; its standard error is this process's."""
    cores, *command = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - started
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime}))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
