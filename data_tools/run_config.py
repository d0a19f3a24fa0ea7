"""What a run's configuration says about its data: the `data:` section, the batch size, and the segments they make.

Used by the commands that take `--config` (train-tokenizer, inspect, stats, mixture, prepare). data_tools does not import the
trainer, so the other sections are left unread here; the trainer checks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smol_config import load_mapping, parse
from smol_data.config import BatchConfig, DataConfig
from smol_data.schedule import SampleRange, Segment, resolve_segments


@dataclass(frozen=True)
class DataRun:
    """The data of one run."""

    data: DataConfig
    batch: BatchConfig
    mapping: dict[str, Any]
    """The whole configuration as read, for a command that needs one more key of it."""

    def segments(self, history: Sequence[Segment] = (), passed_over: Sequence[SampleRange] = ()) -> list[Segment]:
        """The run's segments; when it has begun, after `history`, and without what its rollbacks have passed over."""
        data, skips = self.data, [*self.data.skip_samples, *passed_over]
        return resolve_segments(data.stages, data.sequence_length, self.batch.batch_sizes, skips, history)

    def tokens_by_dataset(self) -> dict[str, float]:
        """Tokens that the run reads of each dataset over all its stages; datasets without a share are left out."""
        tokens: dict[str, float] = {}
        for segment in self.segments():
            of_segment = segment.steps * segment.batch_size * self.data.sequence_length
            for name, weight in segment.weights.items():
                if weight:
                    tokens[name] = tokens.get(name, 0.0) + of_segment * weight / sum(segment.weights.values())
        return tokens


def load_data_run(path: str | Path, overrides: Sequence[str] = (), keep_unset: bool = False) -> DataRun:
    """Read `data:` and the batch sizes in `train:` of a configuration with its bases and overrides.

    With `keep_unset`, ${NAME}s that are not set stay as written: enough where no dataset is opened. Raises ConfigError.
    """
    mapping = load_mapping(path, overrides, keep_unset)
    data = parse(DataConfig, mapping.get("data") or {}, source=str(path), at="data")
    train = mapping.get("train") or {}
    sizes = {key: train[key] for key in BatchConfig.model_fields if key in train}
    return DataRun(data, parse(BatchConfig, sizes, source=str(path), at="train"), mapping)
