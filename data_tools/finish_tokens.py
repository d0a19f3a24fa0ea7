"""The end of `tokenize`: finished shards become a dataset with its report and manifest. Also shows the progress till then.

`report.json` tells what did not become tokens, and what was found:

    dropped        documents left out, by reason: `empty`, `repetition`, or a filter's name and reason
    repetition     the rule (action, period, count) and the documents and tokens that it found
    broken_lines   file, line and error of each JSON line that held no document
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_tools.output import REPORT_NAME, Part, Working, resumable_folder
from data_tools.shard_work import EMPTY, ShardWork, total
from smol_config import UserError
from smol_console import Progress
from smol_data.manifest import Manifest, TokenizerIdentity
from smol_files import write_whole


def finish(work: ShardWork) -> Manifest:
    """Check that all shards are there, write report and manifest and give the folder its name.

    Raises UserError when a shard is missing, when no document is left, or when too many lines are broken in all.
    """
    parts = work.working.all_parts(work.parts)
    report = _report(work, parts)
    broken = report["broken_lines"]
    if len(broken) > work.max_broken_lines:
        raise UserError(
            f"{len(broken)} lines are broken, more than --max-broken-lines {work.max_broken_lines} (the first: "
            f"{broken[0]['error']}); mend them, or raise the limit"
        )
    manifest = _manifest(work, parts)
    if not manifest.tokens:
        dropped = report["dropped"]
        empty = f"all {dropped[EMPTY]} documents are empty" if [*dropped] == [EMPTY] else _left_out(dropped) or "no documents"
        raise UserError(f"the inputs hold no text: {empty}; nothing was written")
    write_whole(work.working.files / REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    manifest.write(work.working.files)
    work.working.release()
    return manifest


def _report(work: ShardWork, parts: list[Part]) -> dict[str, Any]:
    details = [part.details for part in parts]
    return {
        "dropped": total(detail["dropped"] for detail in details),
        "repetition": {
            **work.repetition.model_dump(),
            **{key: sum(detail["repetitive"][key] for detail in details) for key in ("documents", "tokens")},
        },
        "broken_lines": [line for detail in details for line in detail["broken_lines"]],
    }


def _manifest(work: ShardWork, parts: list[Part]) -> Manifest:
    files = sorted((entry for part in parts for entry in part.files), key=lambda entry: entry.name)
    tokenizer = work.tokenizer
    return Manifest(
        tokenizer=TokenizerIdentity(name=tokenizer.name, sha256=tokenizer.sha256),
        vocab_size=tokenizer.vocab_size,
        dtype=tokenizer.dtype,
        eos_id=tokenizer.eos_id,
        eos_ends_documents=not any(part.details["eos_inside"] for part in parts),
        seed=work.seed,
        tokens=sum(entry.tokens or 0 for entry in files),
        documents=sum(entry.documents or 0 for entry in files),
        files=files,
    )


def print_report(folder: Path) -> None:
    """Print what a finished dataset's report has to tell, if anything."""
    report = json.loads((folder / REPORT_NAME).read_text(encoding="utf8"))
    if left_out := _left_out(report["dropped"]):
        print(f"left out: {left_out}")
    rule = report["repetition"]
    if rule["documents"] and rule["action"] != "drop":
        done = "flagged" if rule["action"] == "flag" else "kept"
        print(
            f"{done}: {rule['documents']:,} documents ({rule['tokens']:,} tokens) that repeat a span of 1 to {rule['period']} "
            f"tokens {rule['count']} times or more"
        )
    if broken := report["broken_lines"]:
        print(f"broken: {len(broken):,} lines, the first {broken[0]['error']}")


def _left_out(dropped: dict[str, int]) -> str:
    """`3 documents without text, 2 documents by repetition`, the most frequent first."""
    named = sorted(dropped.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} documents {'without text' if name == EMPTY else f'by {name}'}" for name, count in named)


class FinishStep(PipelineStep):
    """`finish` as a step of datatrove's executors: the last job on Slurm."""

    name, type = "Manifest", "Finish"

    def __init__(self, work: ShardWork) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Finish the dataset."""
        with resumable_folder(self.work.working.target, self.work.identity):
            finish(self.work)
        print_report(self.work.working.target)


# --- progress ------------------------------------------------------------------------------------------------------------


@contextmanager
def watch(work: ShardWork) -> Iterator[None]:
    """Show the tokens written so far, by the shards' sizes: the one figure that does not need to ask the workers."""
    finished = threading.Event()
    token_size = 2 if work.tokenizer.dtype == "uint16" else 4

    def follow() -> None:
        with Progress("tokenising", "tokens") as progress:
            while not finished.wait(1.0 if work.shards < 1000 else 15.0):  # thousands of files take long to look at
                progress.advance(max(0, _shard_bytes(work.working) // token_size - progress.done))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _shard_bytes(working: Working) -> int:
    """Bytes of ids written so far. An attempt's shard is there twice while it is shuffled: the copy does not count."""
    size = 0
    for path in (*working.files.glob("*.ds"), *working.root.glob("attempts/*/*.unshuffled")):
        with suppress(FileNotFoundError):  # attempts come and go
            size += path.stat().st_size
    return size
