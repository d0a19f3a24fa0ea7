"""Health of this rank's GPU as `device/...`: a thread asks NVML every few seconds, the steps take what is there.

On a host without CUDA nothing starts and nothing is said.
"""

import importlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import torch

from smol_train.callbacks.base import Callback, Metrics
from smol_train.nvml import Gpu

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""Between two readings; each takes about a millisecond."""


class DeviceMetrics(Callback):
    """Before the metrics are written. What is written is the main rank's device; RankReport compares all of them."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.latest: dict[str, float] = {}
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        device = trainer.ranks.device
        if device.type == "cuda":
            self.start(importlib.import_module("pynvml"), str(torch.cuda.get_device_properties(device).uuid))

    def start(self, nvml: Any, uuid: str) -> None:
        """Begin to ask `nvml` for the GPU of this UUID; where that is not possible, say so once."""
        try:
            gpu = Gpu(nvml, uuid)
            self.latest = gpu.read()
        except nvml.NVMLError as error:
            logger.warning("no device metrics: NVML says %s", error)
            return
        self.thread = threading.Thread(target=self._watch, args=(gpu,), name="device metrics", daemon=True)
        self.thread.start()

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        metrics.update(self.latest)

    def close(self) -> None:
        self.ended.set()
        if self.thread:
            self.thread.join(self.seconds)

    def _watch(self, gpu: Gpu) -> None:
        try:
            while not self.ended.wait(self.seconds):
                self.latest = gpu.read()
            gpu.close()
        except gpu.nvml.NVMLError as error:
            self.latest = {}
            logger.warning("device metrics end here: NVML says %s", error)
