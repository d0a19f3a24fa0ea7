"""Windows as people read them: on a terminal with colours, as plain text, as one HTML file. Behind `inspect`.

A line before each document says which part of which document follows. The first token of a document after a border is a
target that the loss leaves out: it stands in ⟦ ⟧, or in colour. Texts may hold anything, so control characters are shown as
symbols and never reach the terminal.
"""

import html
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_tools.windows_seen import Piece, SeenWindow
from smol_console import table

Decode = Callable[[list[int]], str]
HEADER = ("step", "sample", "stage", "dataset", "epoch", "window", "file", "documents", "targets left out")

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
_BORDER, _MASKED, _PLAIN = "\x1b[36m", "\x1b[30;43m", "\x1b[0m"


def ids_as_text(ids: list[int]) -> str:
    """What stands for the text where there is no tokenizer."""
    return " ".join(map(str, ids))


def title(seen: SeenWindow) -> str:
    """A window's place in the run."""
    place = seen.location
    return (
        f"step {seen.step:,}, sample {place.sample:,}: {place.dataset}, epoch {place.epoch}, window {place.window:,}, "
        f"stage {place.stage}"
    )


def border(piece: Piece) -> str:
    """What follows in the window: which document, and which part of it."""
    return f"document {piece.document:,} ({piece.shard}), tokens {piece.first:,} to {piece.end - 1:,} of {piece.length:,}"


def text_page(windows: Iterable[SeenWindow], shown: int, decode: Decode, colours: bool) -> Iterator[str]:
    """A table of all windows, then the first `shown` with their text. Only what is shown is held in memory."""
    rows, texts = [], []
    for seen in windows:
        rows.append(list(map(str, _row(seen))))
        if len(rows) <= shown:
            texts += ["", *window_text(seen, decode, colours)]
    yield table(HEADER, rows, left=0)
    yield from texts


def window_text(seen: SeenWindow, decode: Decode, colours: bool) -> Iterator[str]:
    """A window as lines of a terminal (with colours) or of a file."""
    border_on, masked_on, masked_off, plain = (_BORDER, _MASKED, _PLAIN, _PLAIN) if colours else ("", "⟦", "⟧", "")
    yield f"{border_on}=== {title(seen)} ==={plain}"
    for piece in seen.pieces:
        yield f"{border_on}--- {border(piece)} ---{plain}"
        masked, rest = _parts(piece, decode)
        yield (f"{masked_on}{masked}{masked_off}" if piece.masked else "") + rest


def window_json(seen: SeenWindow, decode: Decode | None, with_content: bool) -> dict[str, Any]:
    """A window as JSON; documents carry `text`, or `ids` where there is no tokenizer, unless content is left out."""
    documents = []
    for piece in seen.pieces:
        document: dict[str, Any] = {"document": piece.document, "file": piece.shard, "length": piece.length}
        document |= {"first": piece.first, "end": piece.end, "masked": piece.masked}
        if with_content:
            ids = piece.ids.tolist()
            document |= {"ids": ids} if decode is None else {"text": decode(ids)}
        documents.append(document)
    place = seen.location._asdict() | {"step": seen.step, "first_token": seen.first_token}
    return place | {"tokens": len(seen.ids) - 1, "targets": seen.targets, "documents": documents}


def html_page(heading: str, windows: Iterable[SeenWindow], shown: int, decode: Decode) -> Iterator[str]:
    """The same as one HTML file that needs nothing outside it."""
    texts: list[str] = []
    yield _HTML_HEAD.format(heading=html.escape(heading))
    yield f"<table><tr>{''.join(f'<th>{name}' for name in HEADER)}</tr>\n"
    for index, seen in enumerate(windows):
        step, sample, *cells = (html.escape(str(cell)) for cell in _row(seen))
        if index < shown:
            texts += _html_window(seen, decode)
            sample = f'<a href="#w{sample}">{sample}</a>'
        yield f"<tr>{''.join(f'<td>{cell}' for cell in (step, sample, *cells))}</tr>\n"
    yield "</table>\n"
    yield from texts


def _html_window(seen: SeenWindow, decode: Decode) -> Iterator[str]:
    yield f'<details open id="w{seen.location.sample}"><summary>{html.escape(title(seen))}</summary>\n'
    for piece in seen.pieces:
        masked, rest = _parts(piece, decode)
        mark = f'<mark title="left out of the loss">{html.escape(masked)}</mark>' if piece.masked else ""
        yield f"<h2>{html.escape(border(piece))}</h2>\n<pre>{mark}{html.escape(rest)}</pre>\n"
    yield "</details>\n"


def _row(seen: SeenWindow) -> list[Any]:
    """A line of the table under HEADER."""
    place, documents = seen.location, seen.pieces
    numbers = f"{documents[0].document}" + (f" to {documents[-1].document}" if len(documents) > 1 else "")
    left_out = sum(piece.masked for piece in documents)
    where = [seen.step, place.sample, place.stage, place.dataset, place.epoch, place.window]
    return [*where, documents[0].shard, numbers, left_out]


def _parts(piece: Piece, decode: Decode) -> tuple[str, str]:
    """The text of the masked token, empty where there is none, and of the rest."""
    ids = piece.ids.tolist()
    cut = int(piece.masked)
    return decode(ids[:cut]).translate(_CONTROLS) if cut else "", decode(ids[cut:]).translate(_CONTROLS)


_HTML_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{heading}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px }}
th, td {{ text-align: right; padding: .15em .7em; border-bottom: 1px solid #ddd }}
summary {{ font-weight: 600; margin: 1.5em 0 .5em; cursor: pointer }}
h2 {{ font-size: 13px; font-weight: 600; color: #067; border-top: 1px solid #9cc; margin: 1em 0 0 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; font-size: 13px }}
mark {{ background: #fc6 }}
</style>
<h1>{heading}</h1>
<p>Each window is cut at its document borders. <mark>Marked</mark>: targets that the loss leaves out.</p>
"""
