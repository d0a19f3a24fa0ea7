"""A run that has begun: its resolved configuration and the data it has consumed, from its newest whole checkpoint.

A checkpoint (`RUN/iter_0001000/`) is whole when it holds the marker COMPLETE. `run.yaml` is the configuration as resolved,
`state.json` has under `data` the fingerprint of smol_data.order: the segments trained so far, with every batch size and every
skipped range as they really were, and the manifest digests of the datasets. smol_train writes these files.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.run_config import DataRun, load_data_run
from smol_config import UserError
from smol_data.order import history_of
from smol_data.schedule import Segment

MARKER = "COMPLETE"


@dataclass(frozen=True)
class BegunRun:
    """What a run has done and will do."""

    checkpoint: Path
    data_run: DataRun
    segments: list[Segment]
    """The history as it was, then what is planned."""
    digests: Mapping[str, str]
    """Manifest digest of every dataset when it was consumed."""


def load_begun_run(path: Path, overrides: Sequence[str] = ()) -> BegunRun:
    """The run of a run's folder or of one iter_* folder; raises UserError when there is no whole checkpoint with data."""
    folder = newest_checkpoint(path)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--run {path}: {folder}/state.json cannot be read ({error}); use an earlier checkpoint") from error
    if not state.get("data"):
        raise UserError(
            f"--run {path}: {folder} has consumed no data (converted weights?); give --config with the run's configuration"
        )
    data_run = load_data_run(folder / "run.yaml", overrides)
    passed_over = [(first, end) for first, end in state.get("skips", [])]
    return BegunRun(folder, data_run, data_run.segments(history_of(state["data"]), passed_over), state["data"]["manifests"])


def newest_checkpoint(path: Path) -> Path:
    """`path` itself when it is a whole checkpoint, else the newest whole one in it; raises UserError when there is none."""
    if (path / MARKER).is_file():
        return path
    found = [child for child in path.glob("iter_*") if re.fullmatch(r"iter_\d{7,}", child.name) and (child / MARKER).is_file()]
    if not found:
        raise UserError(f"--run {path}: no whole checkpoint there; give a run's folder or one of its iter_* folders")
    return max(found, key=lambda child: int(child.name.removeprefix("iter_")))
