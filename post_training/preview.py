"""`preview`: what a configuration would train on: samples with the trained tokens coloured, statistics, findings.

Reads the `model:` and `data:` of any recipe's configuration and does what training does first (prepare.py), into a temporary
folder. Exit code 2 where training would refuse, after all has been shown.
"""

import argparse
import html
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from post_training.config import PreparationConfig
from smol_config import UserError, load_mapping, parse
from smol_console import add_command, percent, short, table, whole_number
from smol_files import write_whole

_TRAINED, _PLAIN = "\x1b[30;42m", "\x1b[0m"
_REJECTED = "\x1b[30;41m"
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
Part = tuple[str, str]
"""(text, how it is shown): prompt, trained or rejected."""


def add_parser(subparsers: Any) -> None:
    """Add `preview` to the command line."""
    parser = add_command(
        subparsers,
        "preview",
        "Show what a configuration trains on: samples with the trained tokens coloured, statistics, mixture, findings.",
        "python -m post_training preview --config C.yaml --rows 1000 --html preview.html",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="C.yaml", help="configuration of any recipe")
    parser.add_argument("--samples", type=whole_number(0), default=4, metavar="N", help="samples shown (default 4)")
    parser.add_argument(
        "--rows", type=whole_number(1), metavar="N", help="look at N rows of each source, chosen by the seed (default: all)"
    )
    parser.add_argument("--html", type=Path, metavar="OUT", help="also write one HTML file, complete in itself")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError for what cannot be read, and when there are findings that refuse training."""
    from data_tools.output import check_file
    from post_training import checks
    from post_training.prepare import findings_of, mixtures_of
    from post_training.sources import find
    from post_training.template import load_tokenizer

    if options.html:
        check_file(options.html)
    mapping = load_mapping(options.config, options.overrides)
    known = {key: mapping[key] for key in PreparationConfig.model_fields if key in mapping}
    config = parse(PreparationConfig, known, str(options.config))
    tokenizer = load_tokenizer(config.model, config.data.template)
    found, held_out = ([find(source) for source in sources] for sources in (config.data.sources, config.data.held_out))
    findings = checks.template_findings(tokenizer, config.data)
    with tempfile.TemporaryDirectory() as spools:
        mixtures = mixtures_of(config, found, held_out, Path(spools), options.rows)
        findings += findings_of(mixtures)
        shown = _samples(mixtures["train"], tokenizer, options.samples)
        statistics = "\n\n".join(_table(part, mixed) for part, mixed in mixtures.items())
        colours = sys.stdout.isatty()
        for title, parts in shown:
            print(f"=== {title} ===\n{_terminal(parts, colours)}\n")
        print(statistics)
        if options.rows:
            print(f"\nof {options.rows:,} rows of each source; counts are projected to all rows")
        if findings:
            print(f"\n{checks.text_of(findings)}")
        if options.html:
            write_whole(options.html, "".join(_page(str(options.config), shown, statistics, checks.text_of(findings))))
            print(f"\nwritten: {options.html}")
    if refused := sum(finding.severity == "refuse" for finding in findings):
        raise UserError(
            f"training would be refused: {refused} of the findings above; mend the data, the template or the settings"
        )


# --- samples -----------------------------------------------------------------------------------------------------------------


def _samples(mixed: Any, tokenizer: Any, count: int) -> list[tuple[str, list[Part]]]:
    """The first samples in the order of training, in parts."""
    chosen = [int(sample) for sample in mixed.order[:count]]
    shown = []
    for sample, content in zip(chosen, mixed.read(chosen), strict=True):
        length, trained = int(mixed.lengths[sample]), int(mixed.trained[sample])
        title = f"{mixed.dataset(sample)}: {length:,} tokens, {trained:,} trained"
        shown.append((title, list(_parts(mixed.kind, content, tokenizer))))
    return shown


def _parts(kind: str, content: bytes, tokenizer: Any) -> Iterator[Part]:
    if kind == "prompts":
        row = json.loads(content)
        yield tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True), "prompt"
        yield json.dumps({key: value for key, value in row.items() if key != "prompt"}, ensure_ascii=False), "rejected"
    elif kind == "preference":
        from post_training.prepare import pair_of

        for ids, how in zip(pair_of(content), ("prompt", "trained", "rejected"), strict=True):
            yield tokenizer.decode(ids), how
    else:
        ids, labels = np.frombuffer(content, dtype=np.int32).reshape(2, -1)
        trained = labels >= 0
        borders = [0, *(np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist(), len(ids)]
        for begin, end in pairwise(borders):
            yield tokenizer.decode(ids[begin:end]), "trained" if trained[begin] else "prompt"


def _terminal(parts: Sequence[Part], colours: bool) -> str:
    """Parts for a terminal; without colours trained text stands in ⟦ ⟧ and rejected text in ⟪ ⟫."""
    marks = {"prompt": ("", ""), "trained": ("⟦", "⟧"), "rejected": ("⟪", "⟫")}
    if colours:
        marks |= {"trained": (_TRAINED, _PLAIN), "rejected": (_REJECTED, _PLAIN)}
    return "".join(f"{marks[how][0]}{text.translate(_CONTROLS)}{marks[how][1]}" for text, how in parts)


# --- statistics --------------------------------------------------------------------------------------------------------------


def _table(part: str, mixed: Any) -> str:
    header = (
        "dataset",
        "mode",
        "samples",
        "drawn",
        "passes",
        "tokens",
        "share",
        "trained",
        "of its tokens",
        "median",
        "longest",
    )
    rows = []
    for line in mixed.statistics():
        passes = line["drawn"] / line["samples"] if line["samples"] else 0.0
        counts = [short(line["samples"]), short(line["drawn"]), f"{passes:.2f}", short(line["tokens"])]
        shares = [percent(line["share_of_tokens"]), short(line["trained"]), percent(line["trained_share"])]
        lengths = [f"{line['median_length']:,.0f}", f"{line['longest']:,}"]
        rows.append([line["dataset"], line["mode"], *counts, *shares, *lengths])
    return f"{part}\n{table(header, rows, left=2)}"


def _page(heading: str, shown: Sequence[tuple[str, list[Part]]], statistics: str, findings: str) -> Iterator[str]:
    yield _HEAD.format(heading=html.escape(heading))
    yield f"<pre>{html.escape(findings)}</pre>\n<pre>{html.escape(statistics)}</pre>\n"
    for title, parts in shown:
        spans = (f'<span class="{how}">{html.escape(text.translate(_CONTROLS))}</span>' for text, how in parts)
        yield f"<h2>{html.escape(title)}</h2>\n<pre>{''.join(spans)}</pre>\n"


_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{heading}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }}
h2 {{ font-size: 14px; color: #067; border-top: 1px solid #9cc; margin: 1.5em 0 0 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }}
.trained {{ background: #bfb }} .rejected {{ background: #fcc }}
</style>
<h1>{heading}</h1>
<p><span class="trained">Green</span>: trained, or chosen. <span class="rejected">Red</span>: rejected, or beside a prompt.</p>
"""
