"""Compares the ranks every so many steps: who is slowest, what storage gives, and an alert when throughput falls for good.

Each rank adds up where its steps' time went (smol_train/stragglers.py says what the parts can tell), one small collective
brings the sums together, and the main rank judges them.
"""

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from smol_train.callbacks.alerts import Alerts
from smol_train.callbacks.base import Callback, Metrics
from smol_train.callbacks.devices import DeviceMetrics
from smol_train.launch import host_name
from smol_train.nvml import throttle_names
from smol_train.sections.watch import LoggingConfig
from smol_train.stragglers import OWN, PARTS, Cause, Table, ThroughputWatch, slowest, step_seconds

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

READS = ("reads", "read_bytes", "read_seconds", "slowest_read")
DEVICE = ("device/temperature_celsius", "device/sm_clock_mhz", "device/throttle_reasons")
LISTED_RANKS = 8
"""In an alert; more would not help anybody who reads it."""


class RankReport(Callback):
    """Before the metrics are written. The first step of a process, which compiles, is left out of everything."""

    def __init__(self, config: LoggingConfig, alerts: Alerts, devices: DeviceMetrics) -> None:
        self.every, self.alerts, self.devices = config.ranks_every_steps, alerts, devices
        self.watch = ThroughputWatch(config.throughput_drop, config.throughput_drop_windows)
        self.sums = np.zeros(len(PARTS))
        self.steps = 0
        self.batch_size = 0.0
        self.ended = 0.0
        """When the last step ended; 0: none has."""
        self.paused = 0.0
        """Seconds between the last step and the one at work."""
        self.begun = 0.0
        """When the window began."""
        self.hosts: list[tuple[str, int]] = []
        """Of each rank: host, and the number of the copy of the model that it has a part of."""

    def on_fit_start(self, trainer: "Trainer") -> None:
        if self.every:
            self.hosts = [("", 0)] * trainer.ranks.world_size
            torch.distributed.all_gather_object(self.hosts, (host_name(), trainer.ranks.data_parallel_rank))

    def on_step_start(self, trainer: "Trainer") -> None:
        self.paused = time.perf_counter() - self.ended

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        if not self.every:
            return
        if not self.ended or metrics["train/global_batch_size"] != self.batch_size:
            self.watch.forget()
            self._begin(trainer)
            self.batch_size = metrics["train/global_batch_size"]
        else:
            reduction = metrics["perf/reduction_seconds"]
            compute = metrics["perf/forward_backward_seconds"] - reduction
            self.sums += [
                metrics["perf/data_wait_seconds"],
                compute,
                reduction,
                metrics["perf/optimizer_seconds"],
                self.paused,
            ]
            self.steps += 1
        if self.steps and trainer.state.step % self.every == 0:
            self._report(trainer, metrics)
            self._begin(trainer)
        self.ended = time.perf_counter()

    def _begin(self, trainer: "Trainer") -> None:
        self.sums[:], self.steps = 0.0, 0
        self.begun = time.perf_counter()
        trainer.loader.take_read_stats()

    def _report(self, trainer: "Trainer", metrics: Metrics) -> None:
        rows = self._gather(trainer)
        seconds = time.perf_counter() - self.begun
        table, reads, device = np.split(rows, [len(PARTS), len(PARTS) + len(READS)], axis=1)
        metrics["ranks/slowest"] = slowest(table)
        for part, column in zip(PARTS, table.T, strict=True):
            for name, value in {"min": column.min(), "median": np.median(column), "max": column.max()}.items():
                metrics[f"ranks/{part}_seconds/{name}"] = float(value)
        count, size, waited, longest = reads.T
        metrics["data/read_bytes_per_second"] = float(size.sum()) / seconds
        metrics["data/read_seconds_mean"] = float(waited.sum() / max(count.sum(), 1.0))
        metrics["data/read_seconds_max"] = float(longest.max())
        self._judge(trainer, table, device, metrics)

    def _gather(self, trainer: "Trainer") -> Table:
        """[ranks, len(PARTS + READS + DEVICE)], the same on all ranks."""
        stats = trainer.loader.take_read_stats()
        reads = [stats.reads, stats.bytes, stats.seconds, stats.slowest]
        device = [self.devices.latest.get(name, np.nan) for name in DEVICE]
        mine = torch.tensor([*(self.sums / self.steps), *reads, *device], dtype=torch.float64, device=trainer.ranks.device)
        rows = mine.new_empty(trainer.ranks.world_size * len(mine))
        torch.distributed.all_gather_into_tensor(rows, mine)
        return np.asarray(rows.view(-1, len(mine)).cpu().numpy())

    def _judge(self, trainer: "Trainer", table: Table, device: Table, metrics: Metrics) -> None:
        """On all ranks alike, since all have the same table; the main rank tells."""
        share, was_low = self.watch.share(table), self.watch.fallen
        found = self.watch.add(table)
        if share is not None:
            metrics["perf/throughput_of_median"] = share
        if trainer.ranks.is_main and found and share is not None:
            text = f"{share:.0%} of the run's median, {step_seconds(table):.3f} s a step: {self._told(found, device)}"
            logger.warning("throughput at step %d: %s", trainer.state.step, text)
            self.alerts.alert("throughput_drop", f"step {trainer.state.step:,}: {text}")
        if trainer.ranks.is_main and was_low and not self.watch.fallen:
            logger.info("throughput at step %d: back to %.0f %% of the run's median", trainer.state.step, 100 * (share or 0))

    def _told(self, found: Cause, device: Table) -> str:
        grown = f"grew by {found.seconds:.3f} s"
        if found.part == "communication":
            return f"communication {grown}; no rank's own work did, so look at the network"
        if not found.ranks:
            return f"{OWN[found.part]} {grown} on all ranks"
        named = ", ".join(f"{rank} (host {self.hosts[rank][0]}{_gpu(device[rank])})" for rank in found.ranks[:LISTED_RANKS])
        more = f" and {len(found.ranks) - LISTED_RANKS} more" if len(found.ranks) > LISTED_RANKS else ""
        copies = {self.hosts[rank][1] for rank in found.ranks}
        shared = len(found.ranks) > 1 and len(copies) == 1 and found.part == "compute"
        note = "; they share one copy of the model and wait for one another, so it may be any of them" if shared else ""
        return f"{OWN[found.part]} {grown} on rank {named}{more}{note}"


def _gpu(readings: Table) -> str:
    """What NVML says of a late rank's device, where it is known."""
    temperature, clock, reasons = readings
    if np.isnan(clock):
        return ""
    limits = "" if np.isnan(reasons) else ", ".join(throttle_names(int(reasons)))
    return f", {temperature:.0f} degrees, {clock:.0f} MHz{f', throttled: {limits}' if limits else ''}"
