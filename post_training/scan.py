"""Every row of a source, once: rendered, tokenised, masked, checked, written to a plain file. What streams in preparation.

    records -> Normaliser -> template -> token ids and labels -> spool (bytes in a row) + Scanned (some numbers each)

A file is one task, so that several processes can share them; what comes out does not depend on how many do. In memory are a
batch of rows, and about 40 bytes for each sample: a million samples take 40 MB, whatever their length.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.parallel import Advance
from post_training.config import Source
from post_training.mixture import RowChoice
from post_training.normalise import BrokenRow, Normaliser, Sample
from post_training.sources import records
from post_training.template import Encoded, Rendered, Renderer, load_tokenizer
from smol_answers import END_THINK, IM_END, IM_START, THINK

MODES = ("think", "no_think", "text")
GROUPS = ("broken", "left_out", "noted")
IGNORED = -100
"""The label that the loss leaves out, everywhere in PyTorch and transformers."""
BATCH_CHARACTERS = 1 << 20
BATCH_ROWS = 128
_CODES = {"lengths": "i", "trained": "i", "modes": "B", "times": "H", "texts": "Q", "prompts": "Q", "ends": "q"}
"""Scanned's arrays while they grow, as the array module names their types."""


@dataclass(frozen=True)
class Rules:
    """How rows become samples: the same for all sources."""

    model: str
    template: str
    today: str
    loss_on: str
    max_length: int


@dataclass(frozen=True)
class ScanTask:
    """One file of a source."""

    source: Source
    file: str
    choice: RowChoice
    first_row: int
    """Number of the file's first row within the source."""
    rows: int
    rules: Rules
    spool: Path


class Tally(NamedTuple):
    """How many rows have something, and the first of them."""

    rows: int
    first: str


@dataclass
class Scanned:
    """What the samples of one file are, in the order in which the spool holds them. All arrays have one entry a sample."""

    spool: Path
    lengths: NDArray[np.int32]
    """Tokens; of pairs, prompt and both answers."""
    trained: NDArray[np.int32]
    """Tokens that the loss sees; of prompts none."""
    modes: NDArray[np.uint8]
    """Index into MODES."""
    times: NDArray[np.uint16]
    """How often the source's share takes the sample."""
    texts: NDArray[np.uint64]
    """Hash of the whole sample, to find duplicates."""
    prompts: NDArray[np.uint64]
    """Hash of the users' turns, to find what is trained and held out."""
    ends: NDArray[np.int64]
    """Where the sample's bytes end in the spool."""
    rows: int = 0
    """Rows chosen, good or not."""
    tallies: dict[str, dict[str, Tally]] = field(default_factory=lambda: {group: {} for group in GROUPS})
    """By group, then by what is the matter. broken: rows that cannot be used; left_out: overlong, or with nothing to train on;
    noted: used, but doubtful."""


class _Ready(NamedTuple):
    """A sample on its way to the spool."""

    content: bytes
    length: int
    trained: int


def scan(task: ScanTask, advance: Advance) -> Scanned:
    """Scan one file; `advance` counts rows. Raises UserError for a file that cannot be read or columns that are not there."""
    with task.spool.open("wb") as spool:
        return _Scan(task, spool, advance).run()


@lru_cache(maxsize=1)
def _renderer(model: str, template: str, today: str) -> Renderer:
    """Kept by a worker from file to file: a tokenizer takes a second to load."""
    return Renderer(load_tokenizer(model, template), today)


class _Scan:
    """One file's scan in progress."""

    def __init__(self, task: ScanTask, spool: BinaryIO, advance: Advance) -> None:
        self.task, self._spool, self._advance = task, spool, advance
        self._renderer = _renderer(task.rules.model, task.rules.template, task.rules.today)
        tokenizer = self._renderer.tokenizer
        self._end = tokenizer.eos_token_id
        words = {IM_START, IM_END, tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token} - {None}
        self._control = re.compile("|".join(map(re.escape, sorted(words))))
        self._columns = {name: array(code) for name, code in _CODES.items()}
        self._tallies: dict[str, dict[str, Tally]] = {group: {} for group in GROUPS}
        self._size = self._rows = 0

    def run(self) -> Scanned:
        for batch in _batches(self._samples()):
            self._keep(batch)
        arrays: Any = {name: np.array(column) for name, column in self._columns.items()}
        return Scanned(self.task.spool, **arrays, rows=self._rows, tallies=self._tallies)

    def _samples(self) -> Iterator[tuple[int, int, Sample]]:
        """(row in the file, how often it is taken, sample) of the rows that the source's share takes."""
        task, normalise = self.task, Normaliser(self.task.source)
        times = task.choice.times(task.first_row, task.rows)
        for number, record in records(task.source, task.file):
            if not times[number]:
                continue
            self._rows += 1
            self._advance(1)
            try:
                sample = normalise(record)
                self._refuse_control_tokens(sample)
            except BrokenRow as fault:
                self._note("broken", fault.kind, number, str(fault))
            else:
                for doubt in normalise.nearly_read(record):
                    self._note("noted", "column not read", number, doubt)
                yield number, int(times[number]), sample

    def _refuse_control_tokens(self, sample: Sample) -> None:
        """A turn that holds <|im_end|> would end there for the model, and what follows be a turn of its own."""
        turns = [*sample.messages, *filter(None, (sample.chosen, sample.rejected))]
        document = sample.text.removesuffix(self._renderer.tokenizer.eos_token)  # one at the end is not written twice
        for text in [document, *(part for turn in turns for part in (turn["content"], turn.get("reasoning_content", "")))]:
            if found := self._control.search(text):
                raise BrokenRow("control tokens in text", f"a turn holds the token {found[0]} as text")

    def _keep(self, batch: list[tuple[int, int, Sample]]) -> None:
        """Encode a batch of rows at once, and write what can be trained on."""
        rendered: list[Rendered] = []
        owners: list[tuple[int, int, Sample]] = []
        for row in batch:
            try:
                rendered += self._render(row[2])
                owners.append(row)
            except Exception as error:  # jinja2's errors, and whatever the template's own code raises
                self._note("broken", "refused by the template", row[0], str(error))
        encoded = iter(zip(rendered, self._renderer.encode(rendered), strict=True))
        for number, times, sample in owners:
            parts = [next(encoded) for _ in range(2 if sample.chosen else 1)]
            for piece, ready in enumerate(self._ready(number, sample, parts)):
                self._write(times, sample, ready, "".join(text.text for text, _ in parts), piece)

    def _render(self, sample: Sample) -> list[Rendered]:
        if sample.mode == "text":
            return [Rendered(sample.text, [])]
        if self.task.source.kind == "prompts":
            return [self._renderer(sample.messages, prompt=True)]
        if sample.chosen is None or sample.rejected is None:
            return [self._renderer(sample.messages, **sample.options)]
        prompt = self._renderer(sample.messages, prompt=True, **sample.options).text
        answers = [self._renderer([*sample.messages, turn], **sample.options) for turn in (sample.chosen, sample.rejected)]
        for answer in answers:
            if not answer.text.startswith(prompt) or answer.spans[-1][0] != len(prompt):
                raise ValueError("the prompt is no beginning of prompt and answer")
        return answers

    # --- kinds: what is written ------------------------------------------------------------------------------------------

    def _ready(self, number: int, sample: Sample, parts: list[tuple[Rendered, Encoded]]) -> Iterator[_Ready]:
        if sample.mode == "text":
            yield from self._pieces(parts[0][1].ids)
        elif sample.chosen is not None:
            yield from self._pair(number, parts[0][1], parts[1][1])
        elif self.task.source.kind == "prompts":
            content = {"prompt": sample.messages, "mode": sample.mode, "dataset": self.task.source.name, **sample.kept}
            if self._fits(number, len(parts[0][1].ids)):
                yield _Ready(json.dumps(content).encode(), len(parts[0][1].ids), 0)
        elif self._fits(number, len(parts[0][1].ids)):
            yield from self._chat(number, sample, parts[0][1])

    def _pieces(self, ids: list[int]) -> Iterator[_Ready]:
        """A document with its end, in pieces of max_length; every token is a target."""
        if ids[-1:] != [self._end]:
            ids = [*ids, self._end]
        for start in range(0, len(ids), self.task.rules.max_length):
            piece = np.array(ids[start : start + self.task.rules.max_length], dtype=np.int32)
            yield _Ready(np.stack([piece, piece]).tobytes(), len(piece), len(piece))

    def _chat(self, number: int, sample: Sample, chat: Encoded) -> Iterator[_Ready]:
        ids = np.array(chat.ids, dtype=np.int32)
        labels = ids if self.task.rules.loss_on == "all" else np.full_like(ids, IGNORED)
        for begin, end in chat.spans:
            labels[begin:end] = ids[begin:end]
        trained = int((labels != IGNORED).sum())
        if not trained:
            self._note("left_out", "nothing to train on", number, "the template marks no token of it")
            return
        answers = [turn for turn in sample.messages if turn["role"] == "assistant"]
        if any(not turn["content"].strip() and not turn.get("tool_calls") for turn in answers):
            self._note("noted", "empty answer", number, "an assistant's turn is empty")
        if sample.mode == "think" and "reasoning_content" not in answers[-1]:
            self._note("noted", "think without reasoning", number, "the last answer holds no reasoning, and the mode is think")
        if any(tag in turn["content"] for turn in answers for tag in (THINK, END_THINK)):
            self._note(
                "noted", "stray think tags", number, "an answer holds <think> or </think> that is no whole pair at its start"
            )
        yield _Ready(np.stack([ids, labels]).tobytes(), len(ids), trained)

    def _pair(self, number: int, chosen: Encoded, rejected: Encoded) -> Iterator[_Ready]:
        """Prompt, chosen, rejected; answers end with the stop token, without what the template writes after it."""
        begin, end = chosen.spans[-1]
        other_end = rejected.spans[-1][1]
        parts = [chosen.ids[:begin], chosen.ids[begin:end], rejected.ids[begin:other_end]]
        if parts[1] == parts[2]:
            self._note("broken", "chosen equals rejected", number, "the template makes one text of chosen and rejected")
        elif self._fits(number, max(end, other_end)):
            lengths = [len(part) for part in parts]
            content = np.array([*lengths, *(number for part in parts for number in part)], dtype=np.int32)
            yield _Ready(content.tobytes(), sum(lengths), sum(lengths[1:]))

    def _fits(self, number: int, length: int) -> bool:
        if length > self.task.rules.max_length:
            self._note("left_out", "overlong", number, f"{length:,} tokens, data.max_length is {self.task.rules.max_length:,}")
        return length <= self.task.rules.max_length

    # --- writing -----------------------------------------------------------------------------------------------------------

    def _write(self, times: int, sample: Sample, ready: _Ready, text: str, piece: int) -> None:
        import xxhash

        self._spool.write(ready.content)
        self._size += len(ready.content)
        asked = "\n".join(turn["content"] for turn in sample.messages if turn["role"] == "user") or text
        entry = {"lengths": ready.length, "trained": ready.trained, "modes": MODES.index(sample.mode), "times": times}
        entry |= {
            "texts": xxhash.xxh64_intdigest(text, seed=piece),
            "prompts": xxhash.xxh64_intdigest(asked),
            "ends": self._size,
        }
        for name, value in entry.items():
            self._columns[name].append(value)

    def _note(self, group: str, kind: str, number: int, text: str) -> None:
        found = self._tallies[group]
        before = found.get(kind)
        where = f"dataset {self.task.source.name}, row {number} of {self.task.file}: {text}"
        found[kind] = Tally(before.rows + 1, before.first) if before else Tally(1, where)


def _batches(samples: Iterator[tuple[int, int, Sample]]) -> Iterator[list[tuple[int, int, Sample]]]:
    """Enough rows for the tokenizer's threads, and few enough to be held."""
    batch: list[tuple[int, int, Sample]] = []
    size = 0
    for row in samples:
        batch.append(row)
        size += len(row[2].text) + sum(len(turn["content"]) for turn in row[2].messages)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def read_spool(scanned: Sequence[Scanned], numbers: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of samples, each named by (place of its file in `scanned`, its number there), one at a time."""
    files = {place: scanned[place].spool.open("rb", buffering=0) for place, _ in set(numbers)}
    try:
        for place, number in numbers:
            ends = scanned[place].ends
            begin = int(ends[number - 1]) if number else 0
            files[place].seek(begin)
            yield files[place].read(int(ends[number]) - begin)
    finally:
        for file in files.values():
            file.close()
