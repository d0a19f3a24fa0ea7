"""What tests of sweeps share: a sweep's file over a baseline that plans, and a trainer that leaves a run's files in no time."""

import contextlib
import json
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import QUICKSTART, tiny_overrides

from evaluation.__main__ import main
from evaluation.ablations.sweep import Arm
from smol_config import load, mapping_to_yaml, merge_files
from smol_train.config import RunConfig
from smol_train.plan import plan

STEPS = 30
STAND_IN = f'''"""Trains nothing and leaves what a run would; its loss follows from rate and seed."""

import json, os, signal, sys, time
from pathlib import Path

import yaml

config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
run, rate, seed = Path(config["train"]["output_dir"]), config["optim"]["learning_rate"], config["train"]["seed"]
with open(os.environ["STARTS"], "a") as file:
    print(run.name, file=file)
if rate == 8:
    sys.exit("error: data.datasets.code: nothing there")
alerts = (run / "alerts.jsonl").open("a")
steps, saved = {STEPS}, run / "iter_0000010" / "COMPLETE"
alert = lambda event, text="": print(json.dumps({{"event": event, "text": text}}), file=alerts, flush=True)
alert("resumed" if saved.exists() else "started")
noise = (seed * 7919 % 13 - 6) / 1000
with (run / "metrics.jsonl").open("a") as metrics:
    for step in range(11 if saved.exists() else 1, steps + 1):
        loss = 8 - step / 10 + abs(rate - 0.004) * 100 + noise if rate < 1 else 8 + step * (rate - 6)
        line = {{"step": step, "tokens": 512 * step, "train/loss": None if rate == 9 and step > 20 else loss}}
        line |= {{"perf/tokens_per_second": 1000.0 * seed, "perf/tokens_per_second_per_device": 500.0 * seed}}
        line |= {{"device/temperature_celsius": 40}} if rate == 0.002 else {{}}
        line |= {{"eval/loss/code": loss + 0.1, "eval/loss/docs": loss + 0.2}} if step == steps else {{}}
        print(json.dumps(line), file=metrics, flush=True)
        if step == 10 and not saved.exists():
            saved.parent.mkdir()
            saved.write_text("")
            if rate == 0.003:
                alert("stopped", "at step 10 of 30, saved; exit code 85")
                sys.exit(85)
            if rate == 0.005:
                alert("stopped", "at step 10 of 30, saved; exit code 93")
                sys.exit(93)
            if rate == 0.006:
                heard = []
                signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
                os.kill(os.getppid(), signal.SIGTERM)
                while not heard:
                    time.sleep(0.05)
                alert("stopped", "at step 10 of 30, saved; exit code 85")
                sys.exit(85)
final = run / f"iter_{{steps:07d}}"
final.mkdir()
(final / "COMPLETE").write_text("")
alert("done")
'''


class Lab:
    """A folder with a baseline configuration and a sweep; `ablate` runs the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "sweep"
        overrides = tiny_overrides(folder / "no_corpus", folder / "elsewhere")
        overrides.append(f"data.stages.0.steps={STEPS - 4}")
        (folder / "baseline.yaml").write_text(mapping_to_yaml(merge_files(QUICKSTART, overrides)))
        (folder / "trainer.py").write_text(STAND_IN)
        self.write({"low": 0.002})

    def write(self, rates: dict[str, float], **settings: Any) -> Path:
        """The sweep: a change of the learning rate for each of `rates`, and whatever else."""
        changes = [{"name": name, "overrides": [f"optim.learning_rate={rate}"]} for name, rate in rates.items()]
        sweep = {"baseline": "baseline.yaml", "output": str(self.output), "changes": changes} | settings
        path = self.folder / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep))
        return path

    def ablate(self, *more: str) -> int:
        return main(["ablate", str(self.folder / "sweep.yaml"), *more])

    @property
    def starts(self) -> list[str]:
        """The runs that the trainer was started for, in order."""
        path = self.folder / "starts"
        return path.read_text().split() if path.exists() else []

    def results(self, folder: str = ".") -> dict[str, Any]:
        return dict(json.loads((self.output / folder / "results.json").read_text()))


def planned(arm: Arm) -> dict[str, Any]:
    """In place of the trainer's dry run, which is a process of its own."""
    return dict(plan(load(RunConfig, arm.base, arm.overrides)).model_dump(mode="json"))


def commands_with(folder: Path) -> list[str]:
    """Processes whose command names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (command := path.read_bytes()):
                found.append(command.decode())
    return found
