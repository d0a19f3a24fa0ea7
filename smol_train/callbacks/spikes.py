"""What is told and kept of spikes: alerts, and RUN/spikes/step_N of every rollback, for a person to look into; and of
devices that are suspected of one, RUN/suspects.jsonl.

step_0001234/steps.json         samples, loss, gradient norm and what became of the update, of the steps up to the rollback
step_0001234/documents.jsonl    text of the samples passed over, from the first spike's on, as many as spikes.documents says
"""

import json
import logging
import math
from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smol_data.order import Order
from smol_data.schedule import batch_at
from smol_train.callbacks.alerts import Alerts
from smol_train.callbacks.base import Callback, Metrics
from smol_train.rerun import SUSPECTS_NAME, record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from smol_train.rerun import SuspectedDevice
    from smol_train.rollback import Rollback
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

KEPT_STEPS = 512


class SpikeReports(Callback):
    """On the main rank."""

    def __init__(self, alerts: Alerts) -> None:
        self.alerts = alerts
        self.steps: deque[dict[str, Any]] = deque(maxlen=KEPT_STEPS)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if not trainer.ranks.is_main:
            return
        verdict, step = trainer.verdict, trainer.state.step
        first, size, _ = batch_at(trainer.segments, step - 1)
        self.steps.append(
            {
                "step": step,
                "samples": [first, first + size],
                "loss": metrics["train/loss"],
                "grad_norm": metrics["train/grad_norm"],
                "updated": verdict.update,
                "reason": verdict.reason,
            }
        )
        if verdict.reason:
            logger.warning("step %d: %s; its update is left out", step, verdict.reason)
            if trainer.monitor.spiking == 1:  # once a spike, however long
                finite = math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["train/grad_norm"])
                again = "" if finite else ", again when the step was computed again"
                self.alerts.alert(
                    "spike" if finite else "nan", f"step {step:,}: {verdict.reason}{again}; its update is left out"
                )

    def on_suspected_device(self, trainer: "Trainer", suspected: "SuspectedDevice") -> None:
        if trainer.ranks.is_main:
            logger.error("%s", suspected)
            self.alerts.alert("nan", str(suspected))
            try:
                record(trainer.output_dir, suspected)
            except OSError as error:
                logger.warning("%s cannot be written (%s)", trainer.output_dir / SUSPECTS_NAME, error.strerror)

    def on_rollback(self, trainer: "Trainer", rollback: "Rollback") -> None:
        if not trainer.ranks.is_main:
            return
        first, end = rollback.samples
        text = (
            f"from step {rollback.from_step:,} to {rollback.checkpoint.name}: {trainer.verdict.reason}; samples {first:,} to "
            f"{end - 1:,} are passed over; rollback {rollback.in_a_row} in a row"
        )
        logger.warning("rolling back %s", text)
        self.alerts.alert("rollback", text)
        folder = trainer.output_dir / "spikes" / f"step_{rollback.from_step:07d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "steps.json").write_text(json.dumps(list(self.steps), indent=1) + "\n", encoding="utf8")
            with (folder / "documents.jsonl").open("w", encoding="utf8") as file:
                for document in islice(_documents(trainer, rollback), trainer.config.spikes.documents):
                    file.write(json.dumps(document, ensure_ascii=False) + "\n")
        except OSError as error:  # a full disk does not keep the run from going back
            logger.warning("the spike's report %s cannot be written (%s)", folder, error.strerror)
        self.steps.clear()


def _documents(trainer: "Trainer", rollback: "Rollback") -> Iterator[dict[str, Any]]:
    """The pieces of documents in the samples of the spikes, then of the margin after them, in the order of training."""
    data, segments, datasets = trainer.config.data, trainer.segments, trainer.loader.datasets
    order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    tokenizer = _tokenizer(data.tokenizer)
    for step in range(rollback.first_spike, trainer.total_steps):
        first, size, stage = batch_at(segments, step)
        if first >= rollback.samples[1]:
            return
        for sample, place in enumerate(order.locate_range(first, first + size), start=first):
            window = datasets[place.dataset].window(place.window)
            borders = [0, *(int(end) for end in window.document_ends), len(window.tokens)]
            for begin, end in pairwise(sorted(set(borders))):
                ids = np.asarray(window.tokens[begin:end]).tolist()
                yield {
                    "step": step + 1,
                    "sample": sample,
                    "stage": stage,
                    "dataset": place.dataset,
                    "window": place.window,
                    "text": tokenizer.decode(ids, skip_special_tokens=False) if tokenizer else None,
                    **({} if tokenizer else {"ids": ids}),
                }


def _tokenizer(name: str) -> "Tokenizer | None":
    """The run's tokenizer; None where it cannot be had: ids are better than no report."""
    from tokenizers import Tokenizer

    try:
        file = Path(name) / "tokenizer.json"
        return Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises plain Exception for files and networks alike
        logger.warning("tokenizer %s cannot be read (%s): the spike's documents are written as token ids", name, error)
        return None
