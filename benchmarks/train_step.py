"""Tokens per second of a training step, beside the same model in plain transformers in the same run.

    python -m benchmarks.train_step --config configs/quickstart.yaml
    python -m benchmarks.train_step --config configs/smollm3/pretrain.yaml --backend te --synthetic train.global_batch_size=24
    python -m benchmarks.train_step --config configs/quickstart.yaml --profile

One process on one device. Ours is the real Trainer (loader, telemetry); the peer is transformers with torch.optim.AdamW on the
same windows from the same initial weights. The sides take turns, every measurement in a fresh process; start-up and
the first --warmup steps are left out. The table holds medians over the repeats with their range. Nothing is written
when the two sides' first losses differ: then they do not train the same thing.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import parser_for, positive, run_benchmark, write_table
from benchmarks.synthetic_tokens import with_synthetic_data
from benchmarks.train_step_job import Job, Measurement, read
from smol_config import UserError, load
from smol_train.config import RunConfig

TOLERANCE = 2e-2
"""Largest difference of the first losses: bf16 on both sides, and the peer's attention crosses documents."""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("train_step", __doc__)
    parser.add_argument("--config", required=True, metavar="C.yaml", help="a run's configuration")
    parser.add_argument("--backend", choices=["torch", "te", "auto"], help="of our side (default: the configuration's)")
    parser.add_argument("--steps", type=positive, default=10, help="timed steps of a measurement (default %(default)s)")
    parser.add_argument("--warmup", type=positive, default=3, help="steps before them (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each side (default %(default)s)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of torch, on both sides (default: all)")
    parser.add_argument("--peer", choices=["transformers", "none"], default="transformers")
    parser.add_argument("--synthetic", action="store_true", help="random tokens in a temporary folder instead of the data")
    parser.add_argument("--profile", action="store_true", help="print our step's top operators, and stop")
    parser.add_argument("--output", type=Path, help="default: docs/results/train_step_cpu.md, on a GPU train_step_gpu.md")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, check, print and write the table."""
    from benchmarks.train_step_report import Report, render

    with tempfile.TemporaryDirectory(prefix="train_step_") as name:
        folder = Path(name)
        overrides = _overrides(options, folder)
        config = load(RunConfig, options.config, overrides)
        _check(config, options)
        if options.profile:
            _start("ours", _job(options, overrides, weights="", profile_rows=25), folder)
            return
        load_average = os.getloadavg()[0]
        job = _job(options, overrides, weights=str(folder / "initial.safetensors"))
        ours, peers = _alternate(job, folder, options.repeats, with_peer=options.peer != "none")
    _check_same_start(ours, peers)
    on_gpu = bool(ours[0].device)
    output = options.output or Path(f"docs/results/train_step_{'gpu' if on_gpu else 'cpu'}.md")
    report = Report(
        config, options.config, arguments, options.threads, options.warmup, options.steps, load_average, ours, peers
    )
    text = render(report)
    write_table(output, text)


def _overrides(options: argparse.Namespace, folder: Path) -> list[str]:
    """The user's settings and what a measurement needs: one process, a folder of its own, no checkpoint to start from."""
    ours = ["parallel.tensor=1", "parallel.pipeline=1", "parallel.context=1", "parallel.sequence=false", "start_from=null"]
    ours += [f"train.output_dir={folder / 'run'}"]
    if options.backend:
        ours.append(f"train.backend={options.backend}")
    # Telemetry ten times as often as it is by default, so that few steps show what it costs.
    often = ["logging.ranks_every_steps=10", "logging.parameter_norms_every_steps=10"]
    often += [f"logging.prometheus_file={folder / 'run' / 'metrics.prom'}"]
    overrides = [*often, *options.overrides, *ours]
    steps = options.warmup + options.steps
    return with_synthetic_data(options.config, overrides, steps, folder / "tokens") if options.synthetic else overrides


def _check(config: RunConfig, options: argparse.Namespace) -> None:
    steps = options.warmup + options.steps
    if steps > config.train_steps:
        raise UserError(
            f"--warmup {options.warmup} and --steps {options.steps} are more than the {config.train_steps} steps of "
            f"{options.config}; lower them or lengthen data.stages"
        )
    if options.peer != "none" and not options.profile:
        from conversion.families import family_of

        family_of(config.model)  # says why, where transformers has no such architecture
        if config.model.z_loss:
            raise UserError(
                f"model.z_loss={config.model.z_loss}: transformers has no z-loss to compare with; give model.z_loss=0 or "
                f"--peer none"
            )


def _job(options: argparse.Namespace, overrides: list[str], weights: str, profile_rows: int = 0) -> Job:
    return Job(options.config, overrides, options.warmup, options.steps, options.threads, weights, profile_rows)


def _alternate(job: Job, folder: Path, repeats: int, with_peer: bool) -> tuple[list[Measurement], list[Measurement]]:
    """Ours, peer, ours, peer, ...; a peer that cannot run is asked once."""
    ours: list[Measurement] = []
    peers: list[Measurement] = []
    for number in range(1, repeats + 1):
        ours.append(_start("ours", job, folder))
        _tell(number, repeats, "ours", ours[-1])
        if with_peer and not (peers and peers[0].skipped):
            peers.append(_start("peer", job, folder))
            _tell(number, repeats, "peer", peers[-1])
    return ours, peers


def _tell(number: int, repeats: int, side: str, result: Measurement) -> None:
    said = result.skipped or f"{sum(result.wall) / len(result.wall):.3f} s a step"
    print(f"{number}/{repeats} {side}: {said}", file=sys.stderr, flush=True)


def _start(side: str, job: Job, folder: Path) -> Measurement:
    """One measurement in a fresh process; raises UserError with what it said when it fails."""
    asked, answered = folder / "job.json", folder / "result.json"
    asked.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf8")
    command = [sys.executable, "-m", f"benchmarks.train_step_{side}", str(asked), str(answered)]
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # each side is alone
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    paths = [str(Path(__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(lines[-1].removeprefix("error: ") if done.returncode == 2 else f"{side} failed:\n{done.stderr}")
    return read(answered)


def _check_same_start(ours: list[Measurement], peers: list[Measurement]) -> None:
    if not peers or peers[0].skipped:
        return
    first, other = ours[0].losses[0], peers[0].losses[0]
    if not abs(first - other) <= TOLERANCE:
        raise UserError(
            f"the first losses differ by {abs(first - other):.2g} (ours {first:.5f}, peer {other:.5f}; at most {TOLERANCE:g}): "
            f"the two sides do not train the same model on the same windows; nothing was written"
        )


if __name__ == "__main__":
    sys.exit(main())
