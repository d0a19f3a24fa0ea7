"""How often the spike monitor sounds without a spike, and which spikes it finds, on a recorded loss curve.

python -m benchmarks.spike_detection [--output docs/results/spike_detection.md]
python -m benchmarks.spike_detection --record RUN --command "how RUN was made"

The monitor is the trainer's own (smol_train/spikes.py). False alarms are counted on the curve as it was recorded; for detection
its losses are raised at random places. The same with the curve's noise made smaller, as larger batches make it. The picture
gets the table's name with .png. CPU alone, minutes.
"""

import random
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import parser_for
from smol_train.plot import read_metrics
from smol_train.sections.spikes import SpikesConfig
from smol_train.spikes import SpikeMonitor

RECORDED = Path(__file__).parent / "recorded" / "tiny_run.csv"
TOKENS_PER_STEP = 1_024
"""Of the recorded run."""
SMOLLM3_TOKENS_PER_STEP = 576 * 4_096
NOISE = {"as recorded": 1.0, "an eighth": 1 / 8, "SmolLM3's batch": (TOKENS_PER_STEP / SMOLLM3_TOKENS_PER_STEP) ** 0.5}
"""Share of the noise that is kept. Noise of independent samples falls with the root of their number."""
WARMUP = 100
"""Steps of the recorded run's warm-up, left out."""
DEFAULTS = SpikesConfig()
PLACES = 200
PERSISTENT_STEPS = 20


@dataclass(frozen=True)
class Curve:
    """Loss in nats and gradient norm before clipping, of each step."""

    losses: list[float]
    norms: list[float]

    def with_noise(self, share: float) -> "Curve":
        """The same trend, `share` of the distance from it."""
        return Curve(_shrunk(self.losses, share), _shrunk(self.norms, share))


def _shrunk(values: Sequence[float], share: float) -> list[float]:
    """The trend is a cubic in the logarithm of the step: a running mean would keep a part of the noise whole."""
    steps = np.log(np.arange(len(values)) + WARMUP + 1)
    trend = np.polynomial.Polynomial.fit(steps, values, deg=3)(steps)
    shrunk: list[float] = (trend + share * (np.array(values) - trend)).tolist()
    return shrunk


def read(path: Path = RECORDED) -> Curve:
    """The recorded curve after its warm-up; lines are `step,loss,norm` after comments that say how it was made."""
    lines = [line.split(",") for line in path.read_text(encoding="utf8").splitlines() if not line.startswith("#")]
    return Curve([float(line[1]) for line in lines[WARMUP:]], [float(line[2]) for line in lines[WARMUP:]])


def record(run: Path, command: str, path: Path = RECORDED) -> None:
    """Keep a run's losses and gradient norms with the command that made it."""
    rows = [f"{line['step']},{line['train/loss']:.4f},{line['train/grad_norm']:.4f}\n" for line in read_metrics(run)]
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# {command}\n# step, loss, gradient norm before clipping\n{''.join(rows)}", encoding="utf8")


# --- measuring -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A step of the curve, and the monitor as it stands before it."""

    step: int
    losses: list[float]
    norms: list[float]

    def monitor(self) -> SpikeMonitor:
        return SpikeMonitor(self.losses, self.norms, "stage")


def walk(curve: Curve, config: SpikesConfig) -> Iterator[tuple[Place, str]]:
    """Every step with the monitor's reason to leave its update out, empty for most."""
    monitor = SpikeMonitor(stage="stage")
    for step, (loss, norm) in enumerate(zip(curve.losses, curve.norms, strict=True)):
        place = Place(step, monitor.losses, monitor.norms)
        yield place, monitor.judge(config, "stage", step, loss, norm).reason


def false_alarms(curve: Curve, config: SpikesConfig) -> tuple[float, float]:
    """Per 10,000 steps: of the loss, of the gradient norm."""
    reasons = [reason for _, reason in walk(curve, config)]
    return tuple(1e4 * sum(r.startswith(name) for r in reasons) / len(reasons) for name in ("loss", "gradient"))  # type: ignore[return-value]


def places(curve: Curve, config: SpikesConfig, number: int, room: int) -> list[Place]:
    """Random steps with a full window before and `room` steps after them; the same at every call."""
    usual = [place for place, _ in walk(curve, config)]
    return random.Random(6).sample(usual[config.window : len(usual) - room], number)


def detected(curve: Curve, config: SpikesConfig, place: Place, rises: Iterable[float]) -> tuple[bool, bool]:
    """(an update was left out, the run went back) when the losses from the place on are higher by `rises`."""
    monitor, found = place.monitor(), False
    for step, rise in enumerate(rises, start=place.step):
        verdict = monitor.judge(config, "stage", step, curve.losses[step] + rise, curve.norms[step])
        found |= verdict.reason.startswith("loss")
        if verdict.roll_back:
            return True, True
    return found, False


def rate(curve: Curve, config: SpikesConfig, where: Sequence[Place], rises: Sequence[float], back: bool = False) -> float:
    """Share of the places at which the rises are found, or make the run go back."""
    return statistics.fmean(detected(curve, config, place, rises)[back] for place in where)


def rate_in_deviations(curve: Curve, config: SpikesConfig, where: Sequence[Place], size: float) -> float:
    """The same for one step that is `size` deviations of its window higher than it was."""
    return statistics.fmean(detected(curve, config, one, [size * statistics.pstdev(one.losses)])[0] for one in where)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_for("spike_detection", __doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results/spike_detection.md"), help="table to write")
    parser.add_argument("--record", type=Path, metavar="RUN", help="keep this run's curve and stop")
    parser.add_argument("--command", default="", help="with --record: how RUN was made")
    options = parser.parse_args(arguments)
    if options.record:
        record(options.record, options.command)
        return 0
    from benchmarks.spike_detection_report import draw, report

    command = RECORDED.read_text(encoding="utf8").partition("\n")[0].removeprefix("# ")
    curve = read()
    options.output.write_text(report(curve, command.replace(" \\ ", " \\\n        ")), encoding="utf8")
    draw(curve, options.output.with_suffix(".png"))
    print(f"written: {options.output} and its picture")
    return 0


if __name__ == "__main__":
    sys.exit(main())
