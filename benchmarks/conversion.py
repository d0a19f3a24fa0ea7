"""Seconds and memory of `python -m conversion` at full size, beside a plain copy and transformers' save_pretrained.

    python -m benchmarks.conversion --repeats 3
    python -m benchmarks.conversion --model configs/models/tiny.yaml --work DIR --repeats 1 --output -

A Hugging Face folder of random bf16 weights is made, imported once (from-hf), and then exported: the sides take turns, each
in a fresh process, its source dropped from the page cache before, what it wrote on the disk (fsync) when its clock stops.
Memory is that of the process with all it starts: proportional set sizes, 5 times a second, and each process's exact peak.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.common import cpu_model, parser_for, positive, run_benchmark, spread, versions
from smol_config import UserError, load_mapping, parse
from smol_model.config import ModelConfig

PACKAGES = ("torch", "megatron-core", "transformers", "safetensors")
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Timed:
    """A command that ran."""

    seconds: float
    lines: list[tuple[float, str]]
    """What it printed, with seconds since its start."""
    peak_bytes: int

    def at(self, beginning: str) -> float:
        """When the first line that begins so was printed."""
        return next(seconds for seconds, line in self.lines if line.startswith(beginning))


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(_parse, _run, arguments)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("conversion", __doc__)
    parser.add_argument("--model", type=Path, default=_REPOSITORY / "configs/models/smollm3_3b.yaml", metavar="YAML")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a disk with room for three models")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument(
        "--output", type=Path, default=_REPOSITORY / "docs/results/conversion.md", metavar="FILE", help="- prints it only"
    )
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    model = parse(ModelConfig, load_mapping(options.model)["model"], source=str(options.model))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.work, prefix="conversion_") as name:
        work = Path(name)
        print(f"making {model.parameters:,} random weights in {work}", flush=True)
        _made(["benchmarks.conversion_sides", "make", str(options.model), str(work / "hf")])
        checkpoint = work / "run" / "iter_0000000"
        imported = _made(["conversion", "from-hf", str(work / "hf"), str(checkpoint)])
        sides = {
            "copy": (checkpoint, ["benchmarks.conversion_sides", "copy", str(checkpoint)]),
            "to-hf": (checkpoint, ["conversion", "to-hf", str(checkpoint)]),
            "transformers": (work / "hf", ["benchmarks.conversion_sides", "save-pretrained", str(work / "hf")]),
        }
        runs: dict[str, list[Timed]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side, (source, command) in sides.items():
                _drop_from_cache(source)
                runs[side].append(_made([*command, str(work / "out")]))
                print(f"repeat {repeat + 1}: {side} took {runs[side][-1].seconds:.1f} s", flush=True)
                shutil.rmtree(work / "out")
    text = _report(shlex.join(["python", "-m", "benchmarks.conversion", *arguments]), model, load, imported, runs)
    print(text)
    if str(options.output) != "-":
        options.output.write_text(text, encoding="utf8")


def _made(command: Sequence[str]) -> Timed:
    """Run `python -m COMMAND...`; raises UserError with the end of what it said when it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        started, lines = time.perf_counter(), []
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *command], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=_REPOSITORY
        )
        memory = _Memory(process.pid)
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - started, line.rstrip()))
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        peak = max(memory.stop(), used.ru_maxrss * 1024)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise UserError(f"{shlex.join(command)} ended with {process.returncode}: {errors.read()[-1000:]}")
    return Timed(seconds, lines, peak)


class _Memory(threading.Thread):
    """Watches the proportional set sizes of a process and of what it started."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._over, self.peak = psutil.Process(pid), threading.Event(), 0
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.2):
            total = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    total += process.memory_full_info().pss
            except psutil.Error:  # one that has just ended
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        """The peak, in bytes."""
        self._over.set()
        self.join()
        return self.peak


def _drop_from_cache(folder: Path) -> None:
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- the report ------------------------------------------------------------------------------------------------------------


def _report(command: str, model: ModelConfig, load: float, imported: Timed, runs: dict[str, list[Timed]]) -> str:
    size = 2 * model.parameters
    ours, copies, theirs = runs["to-hf"], runs["copy"], runs["transformers"]
    phases = {
        "plain copy of the checkpoint": [run.at("copied") - run.at("copying") for run in copies],
        "to-hf: converting": [run.at("weights written") - run.at("exporting") for run in ours],
        "transformers: save_pretrained": [run.at("saved") - run.at("loaded") for run in theirs],
    }
    rest = {
        "to-hf: start, SHA-256 of the checkpoint": [run.at("exporting") for run in ours],
        "to-hf: comparing every weight": [run.at("weights compared") - run.at("weights written") for run in ours],
        "to-hf: logits of both, a matrix at a time": [run.at("parity passed") - run.at("weights compared") for run in ours],
        "to-hf: whole": [run.seconds for run in ours],
        "transformers: start, loading the model": [run.at("loaded") for run in theirs],
        "from-hf: whole (once)": [imported.seconds],
    }
    largest = 2 * max(model.vocab_size * model.hidden_size, 2 * model.ffn_hidden_size * model.hidden_size)
    memory = {
        "to-hf, logits compared": max(run.peak_bytes for run in ours),
        "from-hf": imported.peak_bytes,
        "transformers, loading and save_pretrained": max(run.peak_bytes for run in theirs),
    }
    share = min(phases["plain copy of the checkpoint"]) / min(phases["to-hf: converting"])
    lines = [
        "# Conversion: speed and memory",
        "",
        f"    {command}",
        "",
        f"- Machine: {cpu_model()}; load average at the start {load:.1f}.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Model: {model.parameters:,} parameters of random bf16 weights, {size / 1e9:.2f} GB; largest tensor "
        f"{largest / 1e6:,.0f} MB.",
        "- Medians over the repeats, with the lowest and the highest; the sides in turns, each in a fresh process, sources "
        "dropped from the page cache, results on the disk.",
        "",
        "| writing the weights | s | MB/s |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {spread(values, '{:.1f}')} | {spread([size / 1e6 / value for value in values], '{:,.0f}')} |"
            for name, values in phases.items()
        ),
        "",
        f"Converting runs at {share:.2f} times the speed of the copy (the fastest of each).",
        "",
        "| the rest | s |",
        "| --- | ---: |",
        *(f"| {name} | {spread(values, '{:.1f}')} |" for name, values in rest.items()),
        "",
        "| peak memory | MB | beside the largest tensor, MB |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {value / 1e6:,.0f} | {(value - largest) / 1e6:,.0f} |" for name, value in memory.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
