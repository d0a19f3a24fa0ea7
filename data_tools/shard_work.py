"""One shard of `tokenize`, from its input files to its record: what every worker runs, under every executor.

    reader -> steps of the caller -> filters -> ShardWriter     in an attempt's folder, then --Working.finish--> files, record

Shard r of n takes the input files r, r + n, r + 2n, ...; it depends on them and on the settings, never on the worker. A shard
that is finished already is hashed and left as it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_tools.inputs import Inputs
from data_tools.output import Part, Working
from data_tools.quality_filters import FilterSetting
from data_tools.repetition import REASON, RepetitionRule
from data_tools.shard_writer import ShardWriter
from data_tools.tokenizer_file import TokenizerFile

EMPTY = "empty"
"""Under this name documents without text are counted."""


@dataclass(frozen=True)
class ShardWork:
    """All that makes the shards of a dataset; it can be pickled for workers elsewhere."""

    working: Working
    inputs: Inputs
    tokenizer: TokenizerFile
    shards: int
    seed: int
    repetition: RepetitionRule
    filters: tuple[FilterSetting, ...]
    steps: tuple[PipelineStep, ...]
    steps_identity: str
    max_broken_lines: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the bytes, under the names that the command line has for it."""
        return {
            "inputs": self.inputs.identity,
            "--text-key": self.inputs.text_key,
            "--tokenizer": f"sha256 {self.tokenizer.sha256}, EOS {self.tokenizer.eos_id}, {self.tokenizer.vocab_size} ids",
            "--tasks": self.shards,
            "--seed": self.seed,
            "--repetition": self.repetition.model_dump(),
            "--filters": [{setting.name: setting.arguments} for setting in self.filters],
            "steps": self.steps_identity,
        }

    def part(self, rank: int) -> str:
        """Name of shard `rank` as a part of the working folder."""
        return f"{rank:05d}"

    @property
    def parts(self) -> Iterator[str]:
        return map(self.part, range(self.shards))

    def make(self, rank: int) -> Part:
        """Make shard `rank`, unless it is there; raises UserError for inputs that cannot be used, OSError from the disk."""
        part = self.part(rank)
        if record := self.working.verified(part):
            return record
        reader = self.inputs.reader(self.max_broken_lines)
        steps = [*deepcopy(self.steps), *(setting.build() for setting in self.filters)]
        documents: Iterable[Document] = reader.run(rank=rank, world_size=self.shards)
        for step in steps:
            documents = step.run(documents, rank=rank, world_size=self.shards)
        with self.working.attempt(part) as folder:
            # The name is what datatrove's DocumentTokenizer gives its shards.
            writer = ShardWriter(folder, f"{part}_00000_doc_shuffled", self.tokenizer, self.seed, self.repetition)
            shard = writer.write(_texts(documents, reader))
            dropped = _dropped(steps)
            if self.repetition.action == "drop":
                dropped[REASON] = shard.repetitive_documents
            details = {
                "dropped": {EMPTY: reader.empty_documents, **dropped},
                "repetitive": {"documents": shard.repetitive_documents, "tokens": shard.repetitive_tokens},
                "broken_lines": reader.broken_lines,
                "eos_inside": shard.eos_inside,
            }
            return self.working.finish(part, folder, Part(files=shard.files, details=details))


def _texts(documents: Iterable[Document], reader: Any) -> Iterator[str]:
    """The texts; those that a step left empty count with the ones that came so."""
    for document in documents:
        if document.text:
            yield document.text
        else:
            reader.empty_documents += 1


def _dropped(steps: Iterable[PipelineStep]) -> dict[str, int]:
    """Documents that the steps left out, by step and reason, as datatrove's filters count them."""
    counts: dict[str, int] = {}
    for step in steps:
        name = type(step).__name__
        totals = {label: int(metric.total) for label, metric in step.stats.stats.items()}
        reasons = {label.removeprefix("dropped_"): n for label, n in totals.items() if label.startswith("dropped_")}
        unexplained = totals.get("dropped", 0) - sum(reasons.values())
        named = {f"{name}: {reason}": count for reason, count in reasons.items()} | ({name: unexplained} if unexplained else {})
        for key, count in named.items():
            counts[key] = counts.get(key, 0) + count
    return counts


class ShardStep(PipelineStep):
    """ShardWork as a step that datatrove's executors run."""

    name, type = "Token shards", "Tokenise"

    def __init__(self, work: ShardWork) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Make shard `rank`."""
        self.work.make(rank)


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, added up; names in the order in which they first come, zeros left out."""
    sums: dict[str, int] = {}
    for mapping in counts:
        for name, count in mapping.items():
            sums[name] = sums.get(name, 0) + count
    return {name: count for name, count in sums.items() if count}
