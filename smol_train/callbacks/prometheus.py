"""The newest metrics as a file of node_exporter's textfile collector, for Prometheus, Grafana and their alarms.

    train/loss            smol_train_loss{run="smollm3"} 2.103
    train/loss/dclm       smol_train_loss{run="smollm3",of="dclm"} 2.417

The first two parts of a metric's name are Prometheus's name, what follows is the label `of`. A file and no port: nothing has to
reach the run, and the file is whole at every moment, since it is written beside and renamed. docs/grafana.json is a dashboard.
"""

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from smol_files import write_whole
from smol_train.callbacks.base import Callback, Metrics

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""Between two files; Prometheus comes by every 15 to 60."""


class PrometheusFile(Callback):
    """After MetricsWriter, on the main rank. A file that cannot be written is told once and does not end the run."""

    def __init__(self, path: str | None, seconds: float = SECONDS) -> None:
        self.path, self.seconds = Path(path) if path else None, seconds
        self.values: Metrics = {}
        self.written = -math.inf
        self.failed = False

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if self.path is None or not trainer.ranks.is_main:
            return
        counts = {"step": float(trainer.state.step), "tokens": float(trainer.state.tokens), "last_step_time": time.time()}
        self.values.update(metrics | counts)  # what is measured seldom stands until it is measured again
        now = time.monotonic()
        if now - self.written >= self.seconds or trainer.state.step == trainer.total_steps:
            self.written = now
            self._write(trainer.output_dir.name)

    def _write(self, run: str) -> None:
        assert self.path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, exposition(self.values, run))  # what it writes first does not end in .prom, which is read
        except OSError as error:
            if not self.failed:
                logger.warning("logging.prometheus_file=%s cannot be written (%s)", self.path, error.strerror)
            self.failed = True


def exposition(values: Metrics, run: str) -> str:
    """Prometheus's text format: all gauges, values of one name together."""
    samples: dict[str, list[str]] = {}
    for metric, value in values.items():
        first, second, of = (*metric.split("/", 2), "", "")[:3]
        name = "_".join(filter(None, ["smol", first, second]))
        labels = {"run": run, **({"of": of} if of else {})}
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        samples.setdefault(name, []).append(f"{name}{{{inside}}} {_number(value)}")
    return "".join(f"# TYPE {name} gauge\n" + "\n".join(lines) + "\n" for name, lines in samples.items())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
