"""`stats`: what token datasets hold: tokens, document lengths, how much of it is long, and how often a run goes through it.

Between the third step of the flow and the fourth (shards -> **statistics** -> mixture): long-context stages need to know how
many tokens lie in documents that are longer than the context before. Reads manifests and indexes, no tokens.
"""

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.document_lengths import EDGES, THRESHOLDS, Lengths, measure
from data_tools.mixture_plan import MixturePlan, plan_mixture
from data_tools.output import check_new_folder, whole_folder
from data_tools.run_config import load_data_run
from smol_config import UserError
from smol_console import add_command, percent, table, whole_number
from smol_data.manifest import MANIFEST_NAME, Manifest

NAMES = {4096: "4k", 32768: "32k", 65536: "64k"}


@dataclass(frozen=True)
class DatasetStats:
    """One dataset."""

    name: str
    """In the configuration where it is in one, else the folder's."""
    folder: Path
    manifest: Manifest
    lengths: Lengths
    epochs: float | None
    """Times that the configuration's run goes through it; None without one, or when the run does not use it."""

    def longer(self, place: int) -> float:
        """Share of the tokens that lie in documents longer than THRESHOLDS[place]."""
        return float(self.lengths.longer[place, 1] / max(1, self.manifest.tokens))

    def as_json(self) -> dict[str, Any]:
        lengths, manifest = self.lengths, self.manifest
        longer = {
            str(threshold): {
                "documents": int(lengths.longer[place, 0]),
                "tokens": int(lengths.longer[place, 1]),
                "share_of_tokens": self.longer(place),
            }
            for place, threshold in enumerate(THRESHOLDS)
        }
        return {
            "name": self.name,
            "folder": str(self.folder),
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "chunk_tokens": manifest.window_tokens,
            "mean_length": lengths.mean,
            "median_length": lengths.quantile(0.5),
            "shortest": lengths.shortest,
            "longest": lengths.longest,
            "longer_than": longer,
            "epochs": self.epochs,
            "histogram": [dict(zip(("from", "documents", "tokens"), row, strict=True)) for row in self.histogram()],
        }

    def histogram(self) -> list[tuple[int, int, int]]:
        """Lower end, documents and tokens of each bin that holds any."""
        rows = zip(EDGES.tolist(), self.lengths.documents.tolist(), self.lengths.tokens.tolist(), strict=True)
        return [row for row in rows if row[1]]


def add_parser(subparsers: Any) -> None:
    """Add `stats` to the command line."""
    parser = add_command(
        subparsers,
        "stats",
        "Document lengths and tokens of token datasets, how much lies in long documents, and a run's epochs over them.",
        "python -m data_tools stats runs/tokens/code runs/shuffled/code-epoch0 --output runs/stats",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="token dataset folders")
    parser.add_argument(
        "--config", type=Path, metavar="C.yaml", help="adds the run's epochs; without DIR, all its datasets that are there"
    )
    parser.add_argument("--output", type=Path, metavar="OUT_DIR", help="new folder for stats.json, two CSV files, two pictures")
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="processes (default: all cores)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on a folder that is no token dataset, or given twice."""
    if options.output:
        check_new_folder(options.output)
    plan = plan_mixture(load_data_run(options.config, keep_unset=True), None) if options.config else None
    named = _named(options.folders, plan)
    measured = measure(list(named.values()), options.workers or os.cpu_count() or 1)
    found = [
        DatasetStats(name, folder, manifest, lengths, plan.epochs(name) if plan and name in plan.sources else None)
        for (name, folder), (manifest, lengths) in zip(named.items(), measured, strict=True)
    ]
    print(datasets_table(found))
    if any(stats.manifest.window_tokens for stats in found):
        print("\n* shuffled offline in chunks: documents are the pieces that lie in one chunk")
    if options.output:
        with whole_folder(options.output) as folder:
            write_results(folder, found)
        print(f"\nwritten: {options.output}")


def _named(folders: Sequence[Path], plan: MixturePlan | None) -> dict[str, Path]:
    """The folders by the names of the configuration, else by their own."""
    known = {Path(source.folder).resolve(): name for name, source in plan.sources.items()} if plan else {}
    if plan and not folders:
        folders = [path for path in known if (path / MANIFEST_NAME).is_file()]
    if not folders:
        raise UserError("no token dataset to look at; give folders, or --config with a configuration whose datasets are there")
    named: dict[str, Path] = {}
    for folder in folders:
        name = known.get(folder.resolve(), folder.resolve().name)
        if folder.resolve() in {path.resolve() for path in named.values()}:
            raise UserError(f"{folder} is given twice; name it once")
        named[str(folder) if name in named else name] = folder
    return named


def datasets_table(found: Sequence[DatasetStats]) -> str:
    """A line a dataset and one for all; epochs where a configuration tells them."""
    total = sum(stats.manifest.tokens for stats in found)
    with_epochs = any(stats.epochs is not None for stats in found)
    rows = []
    for stats in found:
        lengths, manifest = stats.lengths, stats.manifest
        row = [stats.name + ("*" if manifest.window_tokens else ""), f"{manifest.documents:,}", f"{manifest.tokens:,}"]
        row += [percent(manifest.tokens / max(1, total)), f"{lengths.quantile(0.5):,.0f}", f"{lengths.mean:,.0f}"]
        row += [f"{lengths.longest or 0:,}", *(percent(stats.longer(place)) for place in range(len(THRESHOLDS)))]
        rows.append([*row, "-" if stats.epochs is None else f"{stats.epochs:.2f}"])
    everything = Lengths()
    for stats in found:
        everything.merge(stats.lengths)
    longer = [percent(float(tokens) / max(1, total)) for _, tokens in everything.longer]
    documents = sum(stats.manifest.documents for stats in found)
    row = ["all", f"{documents:,}", f"{total:,}", "", f"{everything.quantile(0.5):,.0f}", f"{everything.mean:,.0f}"]
    rows.append([*row, f"{everything.longest or 0:,}", *longer, ""])
    titles = [f"tokens in > {NAMES[threshold]}" for threshold in THRESHOLDS]
    header = ["dataset", "documents", "tokens", "share", "median", "mean", "longest", *titles, "epochs"]
    shown = len(header) if with_epochs else len(header) - 1
    return table(header[:shown], [row[:shown] for row in rows])


def write_results(folder: Path, found: Sequence[DatasetStats]) -> None:
    """stats.json, stats.csv, histogram.csv, document_lengths.png and tokens.png."""
    from data_tools.plots import draw_document_lengths, draw_tokens

    datasets = [stats.as_json() for stats in found]
    (folder / "stats.json").write_text(json.dumps({"datasets": datasets}, indent=1) + "\n", encoding="utf8")
    columns = ["name", "folder", "documents", "tokens", "mean_length", "median_length", "shortest", "longest", "epochs"]
    with (folder / "stats.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *(f"tokens_longer_than_{threshold}" for threshold in THRESHOLDS)])
        for stats, values in zip(found, datasets, strict=True):
            writer.writerow([*(values[column] for column in columns), *stats.lengths.longer[:, 1].tolist()])
    with (folder / "histogram.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "length_from", "documents", "tokens"])
        for stats in found:
            writer.writerows([stats.name, *row] for row in stats.histogram())
    draw_document_lengths(folder / "document_lengths.png", {stats.name: stats.lengths for stats in found})
    bars = {stats.name: (stats.manifest.tokens, stats.lengths.longer[:, 1].tolist(), stats.epochs) for stats in found}
    draw_tokens(folder / "tokens.png", bars)
