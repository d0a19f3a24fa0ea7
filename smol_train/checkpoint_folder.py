"""A run's checkpoints as folders on disk: their names, the marker, what they say of themselves, which ones go and when.

    RUN/iter_0001000             whole: it holds COMPLETE, the marker, which lists its files
    RUN/iter_0001000/PIN         made by you (`touch`): this one is kept for good
    RUN/iter_0002000.partial     being saved, or left behind by a save or a removal that was killed
    RUN/iter_0002000.replaced    one that a later save of the same step took the name of; goes at once
    RUN/iter_0002000.damaged     found damaged when the run was resumed, set aside
    RUN/uploads/iter_0001000.json  it has arrived where checkpoint.upload says (slurm/upload.py writes it)

A folder gets its name when it is whole, by a rename; the marker inside makes sure of folders that were copied. Nothing here
needs torch: checkpoint.py has the tensors, checkpoint_integrity.py compares files with what the marker lists.
"""

import contextlib
import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from smol_config import UserError, load_mapping, parse
from smol_data.schedule import SampleRange
from smol_model.config import ModelConfig

MARKER = "COMPLETE"
PIN = "PIN"
STATE = "state.json"
RUN_YAML = "run.yaml"

OptimizerForm = Literal["dp_reshardable", "fully_reshardable"]
Aside = Literal["partial", "replaced", "damaged"]
"""Endings of folders that are no checkpoints."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, damaged or does not fit the run."""


@dataclass(frozen=True)
class TrainState:
    """How far a run is; stored as state.json."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Position in the data order: the next sample to be trained on."""
    tokens: int = 0
    """Tokens trained on."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fingerprint of the data consumed so far (smol_data.order)."""
    optimizer: OptimizerForm | None = None
    """Form of the optimizer's state; None: weights only."""
    layout: dict[str, int] = field(default_factory=dict)
    """tensor, pipeline, virtual_pipeline, context and data-parallel sizes that saved."""
    backend: str = ""
    """torch or te: they keep parameters in another order, on which the dp_reshardable form relies."""
    reason: str = ""
    """Why this checkpoint was saved."""
    skips: list[SampleRange] = field(default_factory=list)
    """Samples that rollbacks passed over, besides data.skip_samples."""
    rollbacks: int = 0
    """In a row, up to the latest (smol_train/rollback.py)."""
    last_rollback: int = 0
    """Steps done when the latest was decided."""
    clip_until: int = 0
    """Step until which the gradient norm is clipped harder after it."""
    monitor: dict[str, Any] = field(default_factory=dict)
    """The spike monitor's window (smol_train/spikes.py)."""
    rng: str = "none: nothing random happens after initialisation, and the data order is a function of the sample number"
    versions: dict[str, str] = field(default_factory=dict)


# --- which checkpoints there are -------------------------------------------------------------------------------------------


def folder_name(step: int) -> str:
    return f"iter_{step:07d}"


def step_of(folder: Path) -> int:
    """The step in the folder's name."""
    return int(folder.name.removeprefix("iter_").partition(".")[0])


def whole_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run's folder, oldest first; whether they are damaged is not looked at."""
    found = [path for path in run.glob("iter_*") if re.fullmatch(r"iter_\d{7,}", path.name) and (path / MARKER).is_file()]
    return sorted(found, key=step_of)


def check_whole(folder: Path) -> None:
    """Raises CheckpointError unless the folder has its marker."""
    if not (folder / MARKER).is_file():
        raise CheckpointError(f"checkpoint {folder} has no {MARKER} marker, so its save did not finish; use an earlier one")


def aside(folder: Path, ending: Aside) -> Path:
    """`folder` under a name that no reader takes for a checkpoint."""
    return folder.with_name(f"{folder.name}.{ending}")


def set_aside(folder: Path, ending: Aside) -> Path:
    """Take a checkpoint out of its run by a rename, in place of what an earlier one left there; returns the new path."""
    target = aside(folder, ending)
    shutil.rmtree(target, ignore_errors=True)
    return folder.rename(target)


# --- what goes -------------------------------------------------------------------------------------------------------------


def remove_old(
    run: Path, newest: Path, keep_last: int, keep_every_steps: int | None, only_uploaded: bool = False
) -> list[Path]:
    """Delete what the whole checkpoint `newest` makes superfluous; returns what was deleted.

    Of the checkpoints up to `newest` the last `keep_last` stay, and those that are kept for good; with `only_uploaded` also
    those that have not arrived where they are uploaded to. Of what was set aside at its step or before, nothing stays. A
    folder is renamed first, so that an interrupted deletion leaves none that looks whole.
    """
    older = [path for path in whole_checkpoints(run) if step_of(path) <= step_of(newest)]
    superfluous = [path for path in older[:-keep_last] if not _is_kept_for_good(path, keep_every_steps)]
    removed = [path for path in superfluous if not only_uploaded or note_of(path)]
    for path in removed:
        shutil.rmtree(set_aside(path, "partial"))
    for path in run.glob("iter_*.damaged"):
        if step_of(path) <= step_of(newest):
            shutil.rmtree(path)
            removed.append(path)
    return removed


def _is_kept_for_good(folder: Path, keep_every_steps: int | None) -> bool:
    """Pinned, or a milestone."""
    return (folder / PIN).exists() or bool(keep_every_steps and step_of(folder) % keep_every_steps == 0)


def remove_partial(run: Path) -> list[Path]:
    """Delete what saves and removals that were killed left behind; returns it. Called while none is under way."""
    left = sorted([*run.glob("iter_*.partial"), *run.glob("iter_*.replaced")])
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


# --- what has been uploaded ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UploadNote:
    """RUN/uploads/iter_N.json: this checkpoint has arrived, whole and compared, at `target`."""

    checkpoint: str
    """Which one of its step: its digest_of()."""
    state: str
    """SHA-256 of its state.json, which a rollback rewrites."""
    target: str
    """URL of its folder."""
    bytes: int
    seconds: float
    """That the upload took."""
    time: str
    """When it had arrived, UTC."""


def digest_of(checkpoint: Path) -> str | None:
    """What tells a whole checkpoint from another of the same step: SHA-256 of its marker, which lists the files' hashes.

    None when it is not there, or not any more.
    """
    return _sha256(checkpoint / MARKER)


def identity_of(checkpoint: Path) -> tuple[str, str] | None:
    """Digest of a whole checkpoint and of its state.json, which a rollback rewrites; None when it is not there."""
    digest, state = digest_of(checkpoint), _sha256(checkpoint / STATE)
    return (digest, state) if digest and state else None


def note_of(checkpoint: Path) -> UploadNote | None:
    """The note of this very checkpoint; None: it has not arrived, or was saved again or rewritten since it did."""
    note = read_note(checkpoint.parent, step_of(checkpoint))
    return note if note and (note.checkpoint, note.state) == identity_of(checkpoint) else None


def read_note(run: Path, step: int) -> UploadNote | None:
    """The note of a step's latest upload; None: there is none."""
    try:
        return UploadNote(**json.loads(note_path(run, step).read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError):
        return None


def note_path(run: Path, step: int) -> Path:
    """Where the note of a step's upload is."""
    return run / "uploads" / f"{folder_name(step)}.json"


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


# --- what a folder says of itself ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredFile:
    """What the marker says of one file."""

    bytes: int
    sha256: str


def read_listing(folder: Path) -> dict[str, StoredFile] | None:
    """The files of a whole checkpoint by name, as its marker lists them; None: saved before files were listed.

    Left out are the marker, state.json and PIN, which may change. Raises ValueError for a marker that is no listing.
    """
    text = (folder / MARKER).read_text(encoding="utf8").strip()
    if not text or text.isdecimal():
        return None
    try:
        return {name: StoredFile(**entry) for name, entry in json.loads(text)["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MARKER} lists no files") from error


def listing_text(step: int, files: dict[str, StoredFile]) -> str:
    """What read_listing reads."""
    entries = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sorted(files.items())}
    return json.dumps({"step": step, "files": entries}, indent=1) + "\n"


def bytes_on_disk(folder: Path) -> int:
    """Size of a checkpoint's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def read_run_mapping(folder: Path) -> dict[str, Any]:
    """The resolved configuration stored with a checkpoint, as a mapping; one from from-hf holds only what it knows."""
    return load_mapping(folder / RUN_YAML, keep_unset=True)


def read_model_config(folder: Path) -> ModelConfig:
    """The architecture stored with a checkpoint."""
    return parse(ModelConfig, read_run_mapping(folder).get("model", {}), source=str(folder / RUN_YAML), at="model")


def read_state(folder: Path) -> TrainState:
    """How far the run was that saved this checkpoint."""
    mapping = json.loads((folder / STATE).read_text(encoding="utf8"))
    return TrainState(**{**mapping, "skips": [(first, end) for first, end in mapping.get("skips", [])]})


def state_text(state: TrainState) -> str:
    """What read_state reads."""
    return json.dumps(asdict(state), indent=2) + "\n"


def free_bytes(run: Path) -> int:
    """What a user without privileges may still write into the folder, which need not exist yet; quotas are not seen."""
    return shutil.disk_usage(next(path for path in (run, *run.absolute().parents) if path.exists())).free


def remove_quietly(folder: Path) -> None:
    """Delete a folder, or leave it where the file system does not let it go."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
