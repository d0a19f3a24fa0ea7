"""What the tests of slurm/ do with the lab cluster: submit, wait, look, break."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import QUICKSTART, REPOSITORY

LAB = REPOSITORY / "tests" / "slurm" / "lab.sh"
PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
PATIENCE_SECONDS = 240.0

SETTINGS = {
    "SMOL_NODES": "2",
    "SMOL_RANKS_PER_NODE": "1",
    "SMOL_GPUS_PER_NODE": "0",
    "SMOL_CPUS_PER_RANK": "1",
    "SMOL_TIME": "10",
    "SMOL_SBATCH": "--exclusive",
    "SMOL_SAVE_SECONDS": "60",
    "SMOL_MAX_RESTARTS": "10",
    "SMOL_REQUEUE": "requeue",
    "SMOL_CPU_PARTITION": "cpu",
    "SMOL_WATCH_SECONDS": "1",
    "SMOL_PYTHON": sys.executable,
    "GLOO_SOCKET_IFNAME": "lo",
}


def missing_packages() -> list[str]:
    """Debian packages of what is not installed here."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]


def copy_repository(target: Path) -> Path:
    """The repository's files without git, and with a job more: a stand-in for the trainer."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    (target / "slurm" / "jobs" / "standin.sh").write_text(
        '#!/usr/bin/env bash\njob_trains=yes\njob_command=(bash "$SMOL_CODE/tests/slurm/standin_rank.sh")\n'
    )
    return target


def fake_program(folder: Path, name: str, body: str) -> None:
    """A script in FOLDER/bin that stands in for a tool."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return value


@dataclass(frozen=True)
class Outcome:
    """Of a command."""

    code: int
    out: str
    err: str


class Cluster:
    """A running lab, and a copy of the repository from which jobs are submitted."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder, self.repository = folder, repository
        self.environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str | Path, **environment: str) -> Outcome:
        done = subprocess.run(
            list(map(str, command)),
            env={**self.environment, **environment},
            cwd=self.repository,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def lab(self, command: str, *arguments: str, **environment: str) -> None:
        outcome = self.run("bash", LAB, command, self.folder, *arguments, **environment)
        assert outcome.code == 0, outcome

    def state(self, job: str) -> str:
        """Such as RUNNING or COMPLETED."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        shown = self.run("scontrol", "show", "job", job, "--oneliner").out
        found = re.search(rf"\b{name}=(\S*)", shown)
        return found[1] if found else ""

    def wait_for_state(self, job: str, *states: str) -> str:
        return str(wait_until(lambda: self.state(job) in states and self.state(job), f"job {job} is {self.state(job)}"))

    def rank_process(self, job: str, rank: int) -> int:
        """The trainer of a rank that runs; its workers are younger, and its parent is rank.sh."""
        wanted = {f"SLURM_CONF={self.folder / 'slurm.conf'}", f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                trains = b"pretrain_smol.py\0--config" in (process / "cmdline").read_bytes()
                shell = (process / "comm").read_text().strip() == "bash"
                if trains and not shell and wanted <= set((process / "environ").read_text(errors="replace").split("\0")):
                    found.append(int(process.name))
        return min(found)

    @contextlib.contextmanager
    def setting(self, line: str) -> Iterator[None]:
        """Another line of slurm.conf for a while, such as KillWait=20."""
        before = (self.folder / "slurm.conf").read_text()
        changed, count = re.subn(rf"^{line.partition('=')[0]}=.*$", line, before, flags=re.M)
        assert count == 1, line
        try:
            self._configure(changed)
            yield
        finally:
            self._configure(before)

    def _configure(self, text: str) -> None:
        (self.folder / "slurm.conf").write_text(text)
        outcome = self.run("scontrol", "reconfigure")
        assert outcome.code == 0, outcome

    def jobs(self) -> list[str]:
        """Ids of what waits or runs."""
        return self.run("squeue", "--noheader", "--format=%i").out.split()

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """All nodes up and without jobs, before and after."""
        self._tidy()
        yield
        self._tidy()

    def _tidy(self) -> None:
        wait_until(self._without_jobs, "jobs do not end")
        for node in ("n1", "n2", "n3", "c1"):
            pid = self.folder / "pid" / f"slurmd-{node}.pid"
            if not pid.exists() or not Path(f"/proc/{pid.read_text().strip()}").exists():
                self.lab("node-start", node)
        wait_until(self._all_idle, "nodes do not come back")

    def _without_jobs(self) -> bool:
        """Cancels what there is: again and again, since a job may just be on its way back into the queue."""
        for state in ("PENDING", "RUNNING"):
            self.run("scancel", f"--user={os.getuid()}", f"--state={state}")
        return not self.jobs()

    def _all_idle(self) -> bool:
        return len(self.run("sinfo", "--noheader", "--partition=train,cpu", "--states=idle", "--Node").out.splitlines()) == 4


class Submitter:
    """Submits jobs of one test's run, with settings of its own."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.run = folder / "run"
        self.settings = dict(SETTINGS)
        self.config = QUICKSTART
        self.overrides = [f"train.output_dir={self.run}"]
        self.environment: dict[str, str] = {}
        """Of submit.sh, which jobs inherit."""

    def __call__(self, *arguments: str, **environment: str) -> Outcome:
        """`submit.sh ARGUMENTS` with this test's env.sh."""
        file = self.folder / "env.sh"
        file.write_text("".join(f'{name}="{value}"\n' for name, value in self.settings.items()))
        return self.cluster.run(
            "bash",
            self.cluster.repository / "slurm" / "submit.sh",
            *arguments,
            **{"SMOL_ENV": str(file), **self.environment, **environment},
        )

    def job(self, name: str, *options: str) -> str:
        """Submit; returns the job's id."""
        outcome = self(name, str(self.config), *self.overrides, *(["--", *options] if options else []))
        assert outcome.code == 0, outcome
        found = re.match(r"job (\d+): ", outcome.out)
        assert found, outcome
        return found[1]

    def log(self) -> str:
        """All logs of the run's jobs."""
        return "".join(path.read_text() for path in sorted((self.run / "slurm" / "logs").glob("*.log")))

    def wait_for_log(self, *texts: str) -> str:
        def there() -> str:
            log = self.log()
            return log if all(text in log for text in texts) else ""

        try:
            return str(wait_until(there, f"not in the log: {texts}"))
        except AssertionError:
            pytest.fail(f"not in the log: {texts}\n{self.log()}")

    def ranks(self) -> list[list[str]]:
        """[rank, node, process, restart] of every start of a stand-in's rank."""
        path = self.run / "ranks"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
