"""The `train:`, `start_from:` and `checkpoint:` sections: what the loop does, where it begins and what it leaves behind."""

import re
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from smol_config import Section
from smol_data.config import BatchConfig

Verify = Literal["hashes", "sizes"]


class TrainConfig(BatchConfig):
    """What the loop does."""

    output_dir: str
    """Folder of the run: checkpoints, metrics.jsonl, TensorBoard files."""
    micro_batch_size: PositiveInt
    """Windows in one forward pass of one rank; they make one packed row."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights; the data order has data.seed."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: bf16 weights with fp32 master weights and fp32 gradient accumulation; fp32: everything."""
    backend: Literal["auto", "torch", "te"] = "auto"
    """auto: Transformer Engine where it imports and a GPU is there, else torch."""
    purpose: Literal["main", "ablation", "debugging"] = "main"
    """What the GPU-hours are for; slurm/status.sh adds them up by it."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, at a cost in speed on GPUs (docs/determinism.md)."""


class StartFromConfig(Section):
    """How a new run takes over an earlier one's checkpoint; a run that has its own checkpoint resumes from that."""

    checkpoint: str
    """An iter_* folder, or a run's folder: its newest whole checkpoint."""
    optimizer: bool = True
    """Take over the optimizer's state."""
    data_position: bool = True
    """Go on in the data order and the step count where it stopped; false starts both at 0."""


class CheckpointConfig(Section):
    """When checkpoints are saved and which are kept. One is always saved at a stage's end and at the run's end."""

    every_steps: PositiveInt = 1000
    every_minutes: PositiveFloat | None = None
    """Also after this much time since the last one, whichever comes first."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept on disk."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints at multiples of this are kept for good."""
    async_save: bool = False
    """Write in the background while training goes on."""
    verify: Verify = "hashes"
    """What is compared before a checkpoint is loaded: the SHA-256 of every file, which reads the whole checkpoint once, the
    ranks sharing it, or the sizes alone. A damaged newest one is passed over."""
    upload: str | None = None
    """URL under which every checkpoint is kept as RUN_NAME/iter_N, such as s3://bucket/prefix: the upload job sends them there
    (docs/checkpoint_traffic.md), and none is removed from the run's folder before it has arrived. null: no uploads."""

    def problems(self) -> list[str]:
        if self.upload is not None and not re.fullmatch(r"[^:/]+://.+|.*\$\{.*", self.upload):
            return [f"upload={self.upload} is no URL of a folder; write one such as s3://bucket/prefix"]
        return []
