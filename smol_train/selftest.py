"""The proofs as a command: does this configuration resume, reshard, isolate, seed and keep up, on these machines?

    python -m smol_train.selftest all --config C.yaml                     one process
    python -m smol_train.selftest all --config C.yaml --ranks 4           4 ranks on this host
    torchrun --nproc-per-node 8 -m smol_train.selftest all --config C.yaml
    srun ... python -m smol_train.selftest resume --config C.yaml         a cluster, one task a rank
    python -m smol_train.selftest parity --config C.yaml --ranks 2 model.num_layers=4 train.global_batch_size=16

resume      a run that was killed and one that was stopped go on with the same losses and data, also on another layout
parity      every layout that the ranks allow trains like one rank
isolation   documents of a row do not see each other, in this backend's attention
seeds       initial weights differ on tensor-parallel ranks and pipeline stages and agree on data-parallel ranks
throughput  tokens per second of the step without data, of the loader alone and of both; which part is slow

The configuration's model, data and layout are used, for a few steps; any setting can be given on the command line, so that a
large model is made small there. Everything is written under --output and nothing into the run's folder. docs/selftest.md
says what each check compares and how close it has to be.

Exit codes: 0 nothing failed, 1 a check failed, 93 the configuration or the data must be mended first.
"""

import argparse
import importlib
import importlib.metadata
import json
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smol_config import ConfigError, load
from smol_console import exit_code
from smol_train.config import RunConfig
from smol_train.exit_codes import DONE, REFUSED

if TYPE_CHECKING:
    from smol_train.selftests.base import Setting, Verdict
    from smol_train.selftests.processes import Processes

CHECKS = ("isolation", "seeds", "parity", "resume", "throughput")
"""In the order in which `all` does them, the quickest first."""
NEED_DATA = {"parity", "resume", "throughput"}
FAILED = 1
"""Exit code where a check failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, on each process that was launched; returns the exit code."""
    options = parse(arguments)
    return exit_code(lambda: _command(options), REFUSED)


def _command(options: argparse.Namespace) -> int:
    checks = CHECKS if options.check == "all" else (options.check,)
    config = load(RunConfig, options.config, options.overrides)
    folder = _output(config, options.output)
    warnings.simplefilter("ignore")  # megatron-core and torch name their deprecations at every import
    from smol_train.selftests.processes import processes

    with processes(options.ranks) as crew:
        _check_ready(config, crew, checks, options.steps)
        return _run(options, checks, config, crew, folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m smol_train.selftest",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("check", choices=[*CHECKS, "all"])
    parser.add_argument("--config", required=True, metavar="C.yaml", help="the run's configuration")
    parser.add_argument("--ranks", type=_positive, metavar="N", help="start N ranks here; not under torchrun or srun")
    parser.add_argument("--steps", type=_positive, default=12, help="of a run that is compared (default %(default)s)")
    parser.add_argument("--seed", type=int, help="of the moments of killing and stopping (default: the time, and printed)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where runs are made and removed (default: train.output_dir + _selftest)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report (default: DIR/selftest.json)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    return parser.parse_intermixed_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


# --- before anything runs ------------------------------------------------------------------------------------------------


def _output(config: RunConfig, given: Path | None) -> Path:
    """The self-test's folder; raises ConfigError where it would be in the run's."""
    run = Path(config.train.output_dir)
    folder = given or run.with_name(f"{run.name}_selftest")
    if folder.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"--output {folder} lies in the run's folder, train.output_dir={run}; give one outside of it")
    return folder


def _check_ready(config: RunConfig, crew: "Processes", checks: Sequence[str], steps: int) -> None:
    """Raises a UserError for what no check could do anything about: the layout, the data, the steps."""
    from smol_data.shards import open_datasets
    from smol_train.selftests.layouts import configured
    from smol_train.selftests.resume import draw

    configured(config, crew.size)
    if "resume" in checks:
        draw(steps, seed=0)
    if NEED_DATA & set(checks):
        data, stage = config.data, config.data.stages[0]
        folders = {name: data.datasets[name] for name, weight in stage.weights.items() if weight}
        for dataset in open_datasets(folders, data.sequence_length, data.tokenizer, config.model.vocab_size).values():
            dataset.close()


# --- running and reporting -----------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, checks: Sequence[str], config: RunConfig, crew: "Processes", folder: Path) -> int:
    from smol_train.selftests.base import Setting

    report_path = options.json or folder / "selftest.json"
    seed = crew.share(options.seed if options.seed is not None else int(time.time()))
    scratch = folder / "selftest_scratch"
    if refusal := crew.share(_unwritable(scratch, report_path) if crew.is_main else ""):
        raise ConfigError(refusal)
    entries = []
    if crew.is_main:
        print(f"{crew.size} rank{'s' * (crew.size > 1)}, {options.config}, seed {seed}, report in {report_path}\n")
        print(row("check", "verdict", "seconds", "found"), flush=True)
    for name in checks:
        started = time.monotonic()
        setting = Setting(config, crew, crew.size, scratch / name, options.steps, seed)
        found = _verdict(name, setting, crew)
        entries.append({"check": name, "seconds": round(time.monotonic() - started, 1), **found.model_dump(mode="json")})
        if crew.is_main:
            print(render(entries[-1]), flush=True)
            report = {**_about(options, config, crew, seed), "checks": entries}
            report_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")
    return FAILED if any(entry["outcome"] == "failed" for entry in entries) else DONE


def _verdict(name: str, setting: "Setting", crew: "Processes") -> "Verdict":
    """One check in a folder of its own, which is removed afterwards."""
    from smol_train.selftests.base import JobError, verdict

    if crew.is_main:
        shutil.rmtree(setting.folder, ignore_errors=True)  # of a self-test that was killed
        setting.folder.mkdir(parents=True)
    crew.share(None)  # all wait for the folder
    try:
        found: Verdict = importlib.import_module(f"smol_train.selftests.{name}").check(setting)
    except (JobError, ValueError) as error:
        found = verdict([str(error)], "")
    if crew.is_main:
        shutil.rmtree(setting.folder.parent, ignore_errors=True)
    return found


def _unwritable(scratch: Path, report: Path) -> str:
    """Makes the folders and the report's file; says why it cannot."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.touch()
    except OSError as error:
        return f"{error.filename} cannot be made ({error.strerror}); give another --output or --json"
    return ""


def _about(options: argparse.Namespace, config: RunConfig, crew: "Processes", seed: int) -> dict[str, Any]:
    """What was tested on what."""
    import torch

    from smol_model.spec import resolve_backend

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": options.config,
        "overrides": options.overrides,
        "ranks": crew.size,
        "steps": options.steps,
        "seed": seed,
        "backend": resolve_backend(config.train.backend),
        "devices": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "megatron-core")},
        "resolved": config.model_dump(mode="json", exclude_none=True),
    }


def row(check: str, outcome: str, seconds: str, found: str) -> str:
    return f"{check:<11} {outcome:<8} {seconds:>7}  {found}"


def render(entry: dict[str, Any]) -> str:
    """A verdict as lines of the table."""
    lines = [row(entry["check"], entry["outcome"], f"{entry['seconds']:.1f}", entry["summary"])]
    return "\n".join([*lines, *(row("", "", "", f"  {detail}") for detail in entry["details"])])


if __name__ == "__main__":
    sys.exit(main())
