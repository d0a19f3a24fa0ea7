"""datatrove's executors for `tokenize`: processes of this machine, a Slurm array job, or a Ray cluster.

Each runs one step for ranks 0 to tasks - 1; the step itself knows which of its work is finished, so nothing is asked of
datatrove's own notes on completion. The local executor has its own `run`: datatrove's waits for ever for a worker that the
system has killed, and its workers live on when the command is killed.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import which
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from data_tools.datatrove_steps import quiet
from smol_config import UserError, nearest
from smol_process import when_parent_ends

REPOSITORY = Path(__file__).parents[1]


def run_local(step: PipelineStep, tasks: int, workers: int, logs: Path) -> None:
    """Run all tasks on this machine. What a task raises arrives here; UserError when a worker is killed.

    With one worker everything runs in this process, where the tokenizer's own threads use all cores.
    """
    LocalExecutor([step], tasks=tasks, workers=workers, logging_dir=str(logs), skip_completed=False).run()


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor with a process for each task."""

    def run(self) -> None:
        """Run all tasks; see run_local."""
        if self.workers == 1:
            for rank in range(self.tasks):
                self.run_task(rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["data_tools.__main__", "data_tools.shard_work", __name__])  # imported once for all
        threads = max(1, len(os.sched_getaffinity(0)) // self.workers)
        pending = list(reversed(range(self.tasks)))
        running: dict[Connection, tuple[int, BaseProcess]] = {}
        try:
            while pending or running:
                while pending and len(running) < self.workers:
                    rank = pending.pop()
                    receiver, sender = context.Pipe(duplex=False)
                    process: BaseProcess = context.Process(target=_work, args=(self, rank, threads, sender), daemon=True)
                    process.start()
                    sender.close()
                    running[receiver] = (rank, process)
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    _take(ready, *running[ready])
                    running.pop(ready)[1].join()
                    ready.close()
        finally:
            for _, process in running.values():
                process.kill()
                process.join()

    def run_task(self, rank: int) -> None:
        """Run one task here, without datatrove's log lines; raises UserError or OSError."""
        try:
            with quiet():
                self._run_for_rank(rank)
        except (UserError, OSError):
            raise
        except Exception as error:
            cause = str(error).strip().split("\n")[0]
            raise UserError(f"task {rank} failed with {type(error).__name__}: {cause}") from error


def _work(executor: LocalExecutor, rank: int, threads: int, sender: Connection) -> None:
    """A worker process: one task, then its outcome (None or the exception) to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    when_parent_ends(lambda: os._exit(1))
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    outcome: Exception | None = None
    try:
        executor.run_task(rank)
    except Exception as error:
        outcome = error
    sender.send(outcome)


def _take(receiver: Connection, rank: int, process: BaseProcess) -> None:
    """Receive the outcome of a task; raises what it raised, or UserError when its process was killed."""
    try:
        outcome = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise UserError(
            f"the worker of task {rank} died ({how}); SIGKILL mostly means that memory ran out: give a smaller --workers, and "
            "the same command again"
        ) from None
    if outcome is not None:
        raise outcome


# --- Slurm ---------------------------------------------------------------------------------------------------------------

_SLURM_NEEDED = ("partition", "time")
_SLURM_PASSED = ("account", "constraint", "exclude", "qos", "reservation")  # sbatch's own names
SLURM_OPTIONS = (*_SLURM_NEEDED, "cpus", "mem", *_SLURM_PASSED)
"""`cpus` of a task (default 1), `mem`: GB for each of them (default 2), `time`: limit of a task, as 20:00:00."""


def check_slurm_options(options: Mapping[str, str]) -> None:
    """Raise UserError for an option that is unknown, missing or no number where one is needed, and without Slurm."""
    for name, value in options.items():
        if name not in SLURM_OPTIONS:
            raise UserError(f"--slurm {name}={value}: unknown option; {nearest(name, SLURM_OPTIONS)}")
        if name in ("cpus", "mem") and not (value.isdecimal() and int(value)):
            raise UserError(f"--slurm {name}={value} is not a whole number of at least 1")
    if missing := [name for name in _SLURM_NEEDED if name not in options]:
        raise UserError(
            f"--executor slurm: --slurm names no {' and no '.join(missing)}; write --slurm partition=cpu,time=20:00:00"
        )
    if which("sbatch") is None:
        raise UserError("--executor slurm: there is no sbatch here; run the command on a Slurm login node")


def submit_slurm(
    step: PipelineStep, last: PipelineStep, tasks: int, workers: int | None, options: Mapping[str, str], logs: Path
) -> list[str]:
    """Submit `step` as an array job and `last`, which runs when all of it has succeeded; returns the two jobs' ids.

    `workers` bounds the tasks at work at a time. Raises UserError when sbatch refuses.
    """
    array = _slurm_executor([step], tasks, options, logs / "shards", workers=workers or -1)
    end = _slurm_executor([last], 1, options, logs / "end", depends=array)
    try:
        with quiet():
            end.run()
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"--executor slurm: sbatch refused (its message stands above); mend --slurm {_text(options)}"
        ) from error
    return [str(array.job_id), str(end.job_id)]


class _SlurmExecutor(SlurmPipelineExecutor):
    """Without datatrove's third job, which adds up statistics that nobody reads."""

    def launch_merge_stats(self) -> None:
        """Nothing."""


def _slurm_executor(pipeline: list[Any], tasks: int, options: Mapping[str, str], logs: Path, **more: Any) -> _SlurmExecutor:
    passed = {name: options[name] for name in _SLURM_PASSED if name in options}
    return _SlurmExecutor(
        pipeline,
        tasks=tasks,
        time=options["time"],
        partition=options["partition"],
        cpus_per_task=int(options.get("cpus", 1)),
        mem_per_cpu_gb=int(options.get("mem", 2)),
        qos="",
        job_name="tokenize",
        # A job that waits for one that failed would wait for ever.
        sbatch_args={**passed, "kill-on-invalid-dep": "yes"},
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{REPOSITORY}:$PYTHONPATH"',
        logging_dir=str(logs),
        skip_completed=False,
        **more,
    )


def jobs_in_queue(jobs: list[str]) -> bool:
    """Whether Slurm still has one of these jobs waiting or at work."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", ",".join(jobs)], capture_output=True, text=True, check=False)
    return bool(asked.stdout.strip())  # squeue fails for jobs that it has forgotten: then they are over


def _text(options: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


# --- Ray -----------------------------------------------------------------------------------------------------------------


def check_ray() -> None:
    """Raise UserError when Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError("--executor ray needs the package ray, which is not installed; run `pip install ray`")


def run_ray(step: PipelineStep, tasks: int, workers: int | None, logs: Path) -> None:
    """Run all tasks on the Ray cluster that RAY_ADDRESS names, or on one of this machine; returns when none is left.

    A task that failed is told in its log only; the caller looks which parts are there.
    """
    import ray

    if not ray.is_initialized():
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    with quiet():
        RayPipelineExecutor([step], tasks=tasks, workers=workers or -1, logging_dir=str(logs), skip_completed=False).run()
