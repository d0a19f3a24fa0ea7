"""`fertility`: how many tokens several tokenizers spend on several texts or languages, before one of them is chosen.

Beside the second step of the flow (text -> **tokenizer** -> token shards): the tokenizers may be trained here or published
ones. Three figures for each tokenizer on each text:

  fertility         tokens that a word takes, on average; 1 is the least
  continued words   share of words that are cut into two or more tokens
  bytes per token   bytes of text (UTF-8) for one token, spaces and punctuation included

A word is a run of letters, marks and digits, with apostrophes inside (WORD below). Scripts written without
spaces (Han, kana, Thai, Lao, Khmer, Myanmar) have no such runs, and finding their words takes a model and a dictionary: there
every character counts as a word. So a language's figures compare tokenizers; they do not compare a script with spaces to one
without. A word's tokens are counted where it stands in the text: every token that covers a part of it. With --words-alone
each word is encoded by itself, as the Smol Training Playbook does: then byte-level tokenizers lack the space before the word.
"""

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.inputs import ALL_ENDINGS, find_inputs
from data_tools.output import check_new_folder, whole_folder
from data_tools.sampling import sample_texts
from data_tools.tokenizer_file import load_tokenizer
from smol_config import UserError
from smol_console import Progress, add_command, table, whole_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNSPACED = "".join(rf"\p{{scx={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar"))
_SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]"
WORD = rf"[[\p{{L}}\p{{N}}]&&[{UNSPACED}]]\p{{M}}*|{_SPACED}+(?:['’]{_SPACED}+)*"
"""For the `regex` module with its VERSION1 set operations."""

PIECE = 20_000  # characters encoded at once; a long document is cut after a line end, so that memory stays small
PIECES = 64  # encoded together, by all cores


@dataclass
class Count:
    """What one tokenizer did to one text."""

    text: str
    tokenizer: str
    vocab_size: int
    bytes: int = 0
    tokens: int = 0
    words: int = 0
    word_tokens: int = 0
    continued: int = 0

    @property
    def fertility(self) -> float:
        return self.word_tokens / self.words

    @property
    def continued_words(self) -> float:
        return self.continued / self.words

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


MEASURES: dict[str, tuple[str, Callable[[Count], float], str]] = {
    "fertility": ("fertility: tokens per word (less is better)", lambda count: count.fertility, "{:.3f}"),
    "continued_words": (
        "continued words: share of words in two or more tokens (less is better)",
        lambda count: count.continued_words,
        "{:.1%}",
    ),
    "bytes_per_token": ("bytes per token (more is better)", lambda count: count.bytes_per_token, "{:.3f}"),
}
"""Column of the CSV file: title, figure, its format in tables."""


def add_parser(subparsers: Any) -> None:
    """Add `fertility` to the command line."""
    parser = add_command(
        subparsers,
        "fertility",
        "Compare tokenizers on texts or languages: tokens per word, share of continued words, bytes per token.",
        "python -m data_tools fertility --tokenizer runs/tokenizer --text code=runs/corpus/code docs=runs/corpus/docs",
    )
    parser.add_argument(
        "--tokenizer", nargs="+", required=True, metavar="[NAME=]T", help="folders with a tokenizer.json, or Hub names"
    )
    parser.add_argument(
        "--text", nargs="+", required=True, metavar="NAME=PATH", help=f"a name and a file or folder of {ALL_ENDINGS}"
    )
    parser.add_argument(
        "--text-key", default="text", metavar="KEY", help="key or column of the text, or several as a+b (default text)"
    )
    parser.add_argument(
        "--megabytes", type=whole_number(1), default=10, metavar="N", help="of each text, a sample if it is larger (default 10)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the sample (default 0)")
    parser.add_argument(
        "--words-alone", action="store_true", help="encode each word by itself (default: count where it stands in the text)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="OUT_DIR", help="new folder for fertility.csv, fertility.md and fertility.png"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on a tokenizer or text that cannot be used, or one named twice."""
    if options.output:
        check_new_folder(options.output)
    texts = {name: find_inputs([Path(path)], options.text_key) for name, path in _named("--text", options.text).items()}
    tokenizers = {name: load_tokenizer(source) for name, source in _named("--tokenizer", options.tokenizer).items()}
    counts = []
    for text, inputs in texts.items():
        row = [Count(text, name, tokenizer.get_vocab_size()) for name, tokenizer in tokenizers.items()]
        measure(
            sample_texts(inputs, options.megabytes * 10**6, options.seed),
            list(zip(tokenizers.values(), row, strict=True)),
            options.words_alone,
        )
        if not row[0].words:
            raise UserError(f"--text {text}: no words in its sample of {row[0].bytes:,} bytes; give a text that has some")
        counts += row
    print("\n\n".join(f"{title}\n{figures_table(counts, column)}" for column, (title, _, _) in MEASURES.items()))
    if options.output:
        with whole_folder(options.output) as folder:
            write_csv(folder / "fertility.csv", counts)
            (folder / "fertility.md").write_text(markdown(counts), encoding="utf8")
            draw(folder / "fertility.png", counts)
        print(f"written: {options.output}")


def _named(flag: str, arguments: list[str]) -> dict[str, str]:
    """NAME=VALUE arguments as a mapping; for a tokenizer the name may be left out."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if flag == "--tokenizer" and not separator:
            value = name
        if not name or not value:
            raise UserError(f"{flag} {argument!r} is not of the form NAME=PATH; give a name and a path")
        if name in found:
            raise UserError(f"{flag}: the name {name!r} stands twice; give each its own, as NAME=PATH")
        found[name] = value
    return found


# --- counting ----------------------------------------------------------------------------------------------------------


def measure(texts: Iterable[str], counters: list[tuple["Tokenizer", Count]], words_alone: bool) -> None:
    """Add the texts to the count of each tokenizer. Truncation, padding and special tokens of the tokenizers play no part."""
    import regex

    word = regex.compile(WORD, regex.VERSION1)
    for tokenizer, _ in counters:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
    with Progress("encoding", "bytes") as progress:
        for batch in _batches(pieces(texts)):
            spans = [[match.span() for match in word.finditer(piece)] for piece in batch]
            size = sum(len(piece.encode()) for piece in batch)
            for tokenizer, count in counters:
                count.bytes += size
                _add(count, tokenizer, batch, spans, words_alone)
                progress.advance(size)


def _add(count: Count, tokenizer: "Tokenizer", batch: list[str], spans: list[list[tuple[int, int]]], words_alone: bool) -> None:
    import numpy as np

    encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
    for piece, encoding, piece_spans in zip(batch, encodings, spans, strict=True):
        count.tokens += len(encoding)
        if words_alone:
            words = tokenizer.encode_batch([piece[start:end] for start, end in piece_spans], add_special_tokens=False)
            per_word = np.array([len(word) for word in words], dtype=np.int64)
        else:
            starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
            first, last = np.array(piece_spans, dtype=np.int64).reshape(-1, 2).T
            # Tokens that begin before the word's end, less those that end before its beginning: offsets never decrease.
            per_word = np.searchsorted(starts, last, side="left") - np.searchsorted(ends, first, side="right")
        count.words += len(per_word)
        count.word_tokens += int(per_word.sum())
        count.continued += int((per_word >= 2).sum())


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones cut after a line end (or a space, or anywhere) before PIECE characters."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE:
            window = text[start : start + PIECE]
            end = start + (window.rfind("\n") + 1 or window.rfind(" ") + 1 or PIECE)
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]


def _batches(items: Iterator[str]) -> Iterator[list[str]]:
    from itertools import islice

    while batch := list(islice(items, PIECES)):
        yield batch


# --- showing -----------------------------------------------------------------------------------------------------------


def _columns(counts: list[Count]) -> tuple[list[str], list[str], dict[tuple[str, str], Count]]:
    """Texts, tokenizers, and the count of each pair."""
    by_pair = {(count.text, count.tokenizer): count for count in counts}
    return list(dict.fromkeys(c.text for c in counts)), list(dict.fromkeys(c.tokenizer for c in counts)), by_pair


def figures_table(counts: list[Count], column: str) -> str:
    """One figure as plain text: a line per text, a column per tokenizer."""
    texts, tokenizers, by_pair = _columns(counts)
    _, figure, form = MEASURES[column]
    rows = [[text, *(form.format(figure(by_pair[text, name])) for name in tokenizers)] for text in texts]
    return table(["", *tokenizers], rows)


def markdown(counts: list[Count]) -> str:
    """All figures as Markdown tables."""
    texts, tokenizers, by_pair = _columns(counts)
    parts = []
    for title, figure, form in MEASURES.values():
        lines = [f"**{title}**", "", f"| text | bytes | words | {' | '.join(tokenizers)} |"]
        lines.append("| --- |" + " ---: |" * (2 + len(tokenizers)))
        for text in texts:
            first = by_pair[text, tokenizers[0]]
            cells = [form.format(figure(by_pair[text, name])) for name in tokenizers]
            lines.append(f"| {text} | {first.bytes:,} | {first.words:,} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_csv(path: Path, counts: list[Count]) -> None:
    """One line per text and tokenizer: the counts and the figures."""
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "tokenizer", "vocab_size", "bytes", "words", "tokens", *MEASURES])
        for count in counts:
            figures = [f"{figure(count):.6f}" for _, figure, _ in MEASURES.values()]
            row = [count.text, count.tokenizer, count.vocab_size, count.bytes, count.words, count.tokens, *figures]
            writer.writerow(row)


def draw(path: Path, counts: list[Count]) -> None:
    """The figures side by side, a group of bars per text."""
    from matplotlib.figure import Figure

    texts, tokenizers, by_pair = _columns(counts)
    picture = Figure(figsize=(12, 1.4 + len(texts) * (0.2 + 0.1 * len(tokenizers))), layout="constrained")
    axes = picture.subplots(1, len(MEASURES), sharey=True)
    height = 0.8 / len(tokenizers)
    for axis, (title, figure, _) in zip(axes, MEASURES.values(), strict=True):
        for place, name in enumerate(tokenizers):
            at = [row + (place + 0.5) * height - 0.4 for row in range(len(texts))]
            axis.barh(at, [figure(by_pair[text, name]) for text in texts], height, label=name)
        axis.set_title(title.replace(" (", "\n("), fontsize=9)
        axis.set_yticks(range(len(texts)), texts)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_ylim(len(texts) - 0.4, -0.6)  # the first text on top; the axes are shared
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=len(tokenizers))
    picture.savefig(path, dpi=130)
