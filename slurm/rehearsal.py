"""A long run's life in twenty steps, on its own nodes, data, batch and layout: what a person wants to see before the long run.

    python -m slurm.rehearsal CONFIG -- LAUNCHER...      by slurm/jobs/rehearsal.sh, inside the job; LAUNCHER starts the ranks

    0 --- save --- kill a rank --> again --- signal, save --> again ------ 20 -> export, verified -> upload -> alert

Every part is the real one: the trainer, srun, the exporter, the uploader, the webhook. RUN/rehearsal holds the run, and
afterwards verdict.json and the metrics; checkpoints and the export go when all is well. Exit code 0: all is well; 93: not.
"""

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from smol_config import load
from smol_console import exit_code, table
from smol_train.callbacks.alerts import Alerts
from smol_train.checkpoint_folder import step_of, whole_checkpoints
from smol_train.config import RunConfig
from smol_train.data_places import for_each_rank
from smol_train.exit_codes import DONE, REFUSED, REQUEUE
from smol_train.short_run import shortened

STEPS, SAVE_EVERY = 20, 5
KILL_AFTER, SIGNAL_AFTER = 7, 12
"""Steps. The kill costs steps that are trained again; the signal comes between two periodic saves."""


class Failed(Exception):
    """A part did not do what it should; the sentence says what was seen."""


@dataclass(frozen=True)
class Part:
    """What came of one part of the rehearsal."""

    name: str
    verdict: Literal["passed", "FAILED", "skipped"]
    sentence: str
    seconds: float = 0.0


class Rehearsal:
    """The parts in their order; each returns a sentence, raises Failed, or returns None where there is nothing to rehearse."""

    def __init__(self, config: RunConfig, launcher: Sequence[str]) -> None:
        self.config, self.launcher = config, launcher
        run = Path(config.train.output_dir).absolute()
        self.folder, self.ends = run / "rehearsal", run / "rehearsal" / "ends"
        self.run = self.folder / run.name
        self.short = self.folder / "config.yaml"

    def prepare(self) -> None:
        """An empty folder, and in it the run's configuration cut down."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.ends.mkdir(parents=True)
        short, checkpoint = shortened(self.config, STEPS, self.run), self.config.checkpoint
        upload = f"{checkpoint.upload.rstrip('/')}/rehearsal" if checkpoint.upload else None
        saves = checkpoint.model_copy(update={"every_steps": SAVE_EVERY, "keep_last": STEPS, "upload": upload})
        self.short.write_text(for_each_rank(short.model_copy(update={"checkpoint": saves})), encoding="utf8")

    # --- the ranks --------------------------------------------------------------------------------------------------------

    def start(self) -> "subprocess.Popen[bytes]":
        for end in self.ends.iterdir():
            end.unlink()
        trainer = Path(__file__).parents[1] / "pretrain_smol.py"
        command = [*self.launcher, sys.executable, str(trainer), "--config", str(self.short)]
        return subprocess.Popen(command)

    def end_of(self, ranks: "subprocess.Popen[bytes]") -> int:
        """The ranks' exit code, as run.sh finds it."""
        code = ranks.wait()
        if (self.ends / str(REFUSED)).exists():
            return REFUSED
        return REQUEUE if code == 0 and (self.ends / str(REQUEUE)).exists() else code

    # --- the parts --------------------------------------------------------------------------------------------------------

    def killed(self) -> str:
        """Train, save, and lose a rank."""
        ranks = self.start()
        self.wait_for(ranks, lambda: self.last_step() >= KILL_AFTER and self.saved() > 0, f"step {KILL_AFTER} and a checkpoint")
        self.wait_for(ranks, lambda: bool(self.heartbeats()), "a heartbeat")
        last = max(self.heartbeats(), key=lambda beat: int(beat["rank"]))
        self.one_task("kill", "-KILL", str(last["pid"]), node=last["host"])
        code = self.end_of(ranks)
        if code in (DONE, REQUEUE, REFUSED):
            raise Failed(f"rank {last['rank']} on {last['host']} was to be killed, and the ranks ended with {code}")
        return f"rank {last['rank']} on {last['host']} killed after step {self.last_step()}, and the others with it ({code})"

    def stopped(self) -> str:
        """Go on, and be asked to end."""
        before, after = self.saved(), max(SIGNAL_AFTER, self.last_step() + 1)
        ranks = self.start()
        self.wait_for(ranks, lambda: self.resumed_from(before), f"the run going on from step {before}")
        self.wait_for(ranks, lambda: self.last_step() >= after, f"step {after}")
        ranks.send_signal(signal.SIGUSR1)
        code, saved = self.end_of(ranks), self.saved()
        if code != REQUEUE or saved < after:
            raise Failed(f"asked to save and end after step {after}, the ranks ended with {code} and had saved step {saved}")
        return f"went on from step {before}; at a signal saved step {saved} and ended with {REQUEUE}"

    def finished(self) -> str:
        """Go on to the end."""
        before = self.saved()
        code, lines = self.end_of(self.start()), self.metrics()
        if code != DONE or [line["step"] for line in lines] != list(range(1, STEPS + 1)) or not self.resumed_from(before):
            raise Failed(f"from step {before} the ranks came to step {self.last_step()} of {STEPS} and ended with {code}")
        losses = [line["train/loss"] for line in lines]
        if not all(map(math.isfinite, losses)):
            raise Failed(f"the loss is not finite: {losses}")
        return f"went on from step {before} to {STEPS}; loss {losses[0]:.3f} -> {losses[-1]:.3f}; {_speed(lines[-4:])}"

    def exported(self) -> str:
        """To Hugging Face's format, with its proof."""
        code = self.one_task(sys.executable, "-m", "conversion", "to-hf", str(self.run), str(self.folder / "hf"))
        if code:
            raise Failed(f"to-hf ended with {code}")
        parity = json.loads((self.folder / "hf" / "parity.json").read_text())
        return f"exported; logits differ from transformers' by {parity['max_logit_difference']:.1e} at most"

    def uploaded(self) -> str | None:
        """The checkpoints, beside where the run's go."""
        target = self.config.checkpoint.upload
        if target is None:
            return None
        code = subprocess.run([sys.executable, "-m", "slurm.upload", str(self.short)], check=False).returncode
        if code:
            raise Failed(f"slurm.upload ended with {code}")
        return f"uploaded to {target.rstrip('/')}/rehearsal, verified there; it may be removed"

    def alerted(self) -> str | None:
        """A message to the webhook."""
        settings = self.config.alerts
        if settings.webhook is None or not settings.events:
            return None
        with Alerts(settings, self.run, is_main=True) as alerts:
            alerts.alert(settings.events[0], "rehearsal: this is where alerts of the run will be told")
        if alerts.dropped:
            raise Failed("the webhook of alerts.webhook did not take the message")
        return "the webhook took a message; see whether it has reached the channel"

    # --- what they use ----------------------------------------------------------------------------------------------------

    def wait_for(self, ranks: "subprocess.Popen[bytes]", seen: Callable[[], bool], what: str) -> None:
        while not seen():
            if ranks.poll() is not None:
                raise Failed(f"the ranks ended with {self.end_of(ranks)} after step {self.last_step()}, before {what}")
            time.sleep(0.2)

    def one_task(self, *command: str, node: str | None = None) -> int:
        """One process beside the ranks, in the same container as they; its exit code."""
        where = [f"--nodelist={node}"] if node else []
        step = [*self.launcher, *command]
        options = ["--overlap", "--nodes=1", "--ntasks=1", *where]
        return subprocess.run([step[0], *options, *step[1:]], check=False).returncode

    def metrics(self) -> list[dict[str, Any]]:
        return _lines(self.run / "metrics.jsonl")

    def heartbeats(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf8")) for path in (self.run / "heartbeat").glob("rank_*.json")]

    def last_step(self) -> int:
        return max((int(line["step"]) for line in self.metrics()), default=0)

    def saved(self) -> int:
        return max(map(step_of, whole_checkpoints(self.run)), default=0)

    def resumed_from(self, step: int) -> bool:
        """Whether the trainer has told that it goes on from there."""
        told = _lines(self.run / "alerts.jsonl")
        return any(line["event"] == "resumed" and line["text"].startswith(f"step {step:,} of") for line in told)

    def tidy(self) -> None:
        """What is large goes."""
        for folder in (self.folder / "hf", self.ends, *whole_checkpoints(self.run)):
            shutil.rmtree(folder)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that is being written."""
    text = path.read_text(encoding="utf8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _speed(lines: Sequence[dict[str, Any]]) -> str:
    """Median of the last steps."""
    rates = sorted(line["perf/tokens_per_second_per_device"] for line in lines)
    used = lines[-1].get("perf/model_flops_utilization")
    return f"{rates[len(rates) // 2]:,.0f} tokens/s a device" + ("" if used is None else f", {used:.1%} of its peak FLOPs")


def rehearse(rehearsal: Rehearsal) -> list[Part]:
    """All parts; after one that failed, those that need a run are skipped."""
    found: list[Part] = []
    parts = (rehearsal.killed, rehearsal.stopped, rehearsal.finished, rehearsal.exported, rehearsal.uploaded)
    for part in (*parts, rehearsal.alerted):
        name, started = part.__name__, time.monotonic()
        failed = next((one.name for one in found if one.verdict == "FAILED"), None)
        if failed and part != rehearsal.alerted:
            found.append(Part(name, "skipped", f"since '{failed}' failed"))
            continue
        try:
            sentence = part()
            one = Part(name, "passed", sentence) if sentence else Part(name, "skipped", "nothing is configured")
        except Failed as error:
            one = Part(name, "FAILED", f"{error}; the log says why")
        found.append(replace(one, seconds=round(time.monotonic() - started, 1)))
        print(f"rehearsal: {name} {found[-1].verdict}: {found[-1].sentence}", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.rehearsal", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("launcher", nargs="+", metavar="LAUNCHER")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options), REFUSED)


def _run(options: argparse.Namespace) -> int:
    rehearsal = Rehearsal(load(RunConfig, options.config), options.launcher)
    rehearsal.prepare()
    parts = rehearse(rehearsal)
    well = not any(part.verdict == "FAILED" for part in parts)
    verdict = {"verdict": "passed" if well else "FAILED", "parts": [asdict(part) for part in parts]}
    (rehearsal.folder / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf8")
    rows = [(part.name, part.verdict, f"{part.seconds:.0f} s", part.sentence) for part in parts]
    print(table(("part", "", "took", ""), rows, left=4))
    print(f"rehearsal {verdict['verdict']}: {rehearsal.folder / 'verdict.json'}")
    if well:
        rehearsal.tidy()
    return DONE if well else REFUSED


if __name__ == "__main__":
    sys.exit(main())
