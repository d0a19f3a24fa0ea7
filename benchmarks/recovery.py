"""How long a run takes to be where it was, after each fault that the lab cluster can be given.

    python -m benchmarks.recovery

Runs the story of tests/slurm/test_recovery.py (about ten minutes: a real Slurm of virtual nodes on this machine, the real
trainer, S3 that is down for a while), which fails unless the run ends bit for bit as an undisturbed one, and writes what
slurm.incidents finds in its folder. There is no peer in it: most of the time is Slurm's, and the table says which.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import cpu_model, parser_for, run_benchmark, versions, write_table
from smol_config import UserError

REPOSITORY = Path(__file__).parents[1]
STORY = "tests/slurm/test_recovery.py::test_a_run_survives_everything_and_sees_the_same_samples"

TEXT = """# Time to recover

    {command}

- Machine: {machine}; load average at the start {load:.1f}.
- Versions: {slurm}, {versions}.
- Two virtual nodes with a rank each, a spare, and a node for the uploader, all on this machine. The run:
  configs/quickstart.yaml made tiny (`{story}`), 320 steps, a checkpoint every 24. Its losses are those of
  an undisturbed run, bit for bit, or there would be no table. S3 answered 503 until the time limit; no checkpoint was
  removed meanwhile, and all arrived.
- Slurm here takes a node that does not answer as lost after 8 s (`SlurmdTimeout`, on most clusters 300 s), and lets a requeued
  job wait 5 s (`cred_expire`, by default 120 s). The watchdog gives a step 15 s and srun the other ranks 20 s; by default that
  is 30 minutes and 2 minutes. Every start has its preflight. On a real cluster add those differences and the loading of a
  real checkpoint.

{incidents}

From the fault, or the last step before it: the time until it is known, then until the job's next start, until that start's
first step, until the first step beyond the last one before the fault; "recovered in" is their sum.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("recovery", __doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results/recovery.md"), help="default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """The story, and then its table."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="recovery_") as folder:
        story = [sys.executable, "-m", "pytest", "-m", "slow", f"--basetemp={folder}/story", STORY]
        if subprocess.run(story, cwd=REPOSITORY, check=False).returncode:
            raise UserError(f"{STORY} did not pass, or was left out; see above: there is nothing to tell")
        [starts] = {path.resolve() for path in Path(folder).glob("story/*/run/slurm/starts.jsonl")}  # pytest adds a link
        asked = [sys.executable, "-m", "slurm.incidents", str(starts.parents[1]), "--markdown"]
        incidents = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    text = TEXT.format(
        command=" ".join(["python -m benchmarks.recovery", *arguments]),
        machine=cpu_model(),
        load=load,
        slurm=slurm_version(),
        versions=versions(["torch", "megatron-core"]),
        story=STORY.partition("::")[0],
        incidents=incidents.partition("\n\n")[2].strip(),
    )
    write_table(options.output, text)


def slurm_version() -> str:
    """Such as "slurm 22.05.8"; asked of the daemon, which alone answers where no cluster is configured."""
    daemon = shutil.which("slurmd", path=f"{os.environ['PATH']}:/usr/sbin") or "slurmd"
    return subprocess.run([daemon, "-V"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
