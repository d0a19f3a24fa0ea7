"""`push`: a Hugging Face folder -> the Hub (`namespace/name`), S3 (`s3://bucket/prefix`) or any other URL of fsspec.

    HF_DIR --whole? (here)--> its files --conversion/upload--> TARGET

Nothing is sent of a folder that is not whole. What the target has already is not sent again: a second push of the same folder
changes nothing, and one after a kill goes on where the first was stopped.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from humanize import naturalsize
from safetensors import SafetensorError, safe_open

from conversion import ConversionError, Unreachable
from conversion.upload import objects
from conversion.upload.flow import upload
from conversion.upload.hub import HubBranch
from conversion.upload.local_files import LocalFile, hash_all, local_files
from conversion.upload.store import Pushed, Store, compare

__all__ = ["Options", "Pushed", "Unreachable", "push", "run"]


@dataclass(frozen=True)
class Options:
    """How a folder is pushed: all of it matters to the Hub alone."""

    revision: str | None = None
    """Branch, made when it is missing; None: main."""
    tag: str | None = None
    """Tag for the commit."""
    public: bool = False
    """Whether a repository that has to be made is public."""
    message: str | None = None
    """Title of the commit; None: "Upload" and the folder's name."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """The options among a command's arguments."""
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})


def push(hf_dir: Path, target: str, options: Options) -> Pushed:
    """Make `target` hold what `hf_dir` holds, and nothing else that was pushed to it.

    Raises ConversionError, of which Unreachable says that the same push may succeed later. Progress goes to stderr.
    """
    files = whole_folder(hf_dir)
    return upload(files, _store(hf_dir, target, options, files))


def run(hf_dir: Path, target: str, options: Options, dry_run: bool = False) -> None:
    """The command: push, and say what was done; or only say what would be done."""
    if dry_run:
        files = whole_folder(hf_dir)
        _tell(files, _store(hf_dir, target, options, files))
        return
    pushed = push(hf_dir, target, options)
    if pushed.changed:
        print(f"sent {_amount(pushed.files, pushed.bytes)} to {pushed.url}")
    else:
        print(f"{pushed.url} holds this folder already; nothing was sent")
    if pushed.commit:
        print(f"commit {pushed.commit}")


def _store(hf_dir: Path, target: str, options: Options, files: Sequence[LocalFile]) -> Store:
    """The place that TARGET and the options mean."""
    if "://" not in target:
        message = f"Upload {hf_dir.resolve().name}" if options.message is None else options.message
        branch = "main" if options.revision is None else options.revision
        return HubBranch(target, branch, options.tag, options.public, message)
    for field in fields(options):
        if getattr(options, field.name) != field.default:
            raise ConversionError(f"--{field.name} is for the Hub and {target} is a URL; leave it out")
    return objects.open_store(target, files)


# --- is the folder whole? ------------------------------------------------------------------------------------------------


def whole_folder(hf_dir: Path) -> list[LocalFile]:
    """The files of a Hugging Face folder; raises ConversionError if it is none, unfinished, or failed its verification.

    What begins with a dot, such as .cache and .git, is not among them.
    """
    if hf_dir.resolve().name.endswith(".partial"):
        raise ConversionError(
            f"{hf_dir} is an export that was not finished; export it again, then push the folder that results"
        )
    files = local_files(hf_dir, wanted=lambda name: not any(part.startswith(".") for part in name.split("/")))
    names = {file.name for file in files}
    if "config.json" not in names:
        raise ConversionError(f"{hf_dir} has no config.json; give a Hugging Face folder, as to-hf makes them")
    if unfinished := sorted(name for name in names if name.endswith(".partial")):
        raise ConversionError(f"{hf_dir / unfinished[0]} was not finished; make the folder again or remove the file")
    _check_weights(hf_dir, names)
    _check_parity(hf_dir)
    return files


def _check_weights(hf_dir: Path, names: set[str]) -> None:
    """There are weights, all that an index names, and no safetensors file is cut off."""
    weights = {name for name in names if name.endswith((".safetensors", ".bin"))}
    if not weights:
        raise ConversionError(f"{hf_dir} holds no weights (*.safetensors); give a whole Hugging Face folder")
    for index in sorted(name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))):
        try:
            named = set(json.loads((hf_dir / index).read_text(encoding="utf8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConversionError(f"{hf_dir / index} cannot be read ({error!r}); make the folder again") from error
        if missing := sorted(named - names):
            raise ConversionError(f"{hf_dir} lacks {', '.join(missing)}, named by {index}; make the folder again")
    for name in sorted(name for name in weights if name.endswith(".safetensors")):
        try:
            with safe_open(hf_dir / name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{hf_dir / name} is damaged ({error}); make the folder again") from error


def _check_parity(hf_dir: Path) -> None:
    """If a comparison with the checkpoint is recorded, it passed."""
    path = hf_dir / "parity.json"
    if not path.exists():
        return
    try:
        passed = json.loads(path.read_text(encoding="utf8"))["passed"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConversionError(
            f"{path} cannot be read ({error!r}); verify the folder again: python -m conversion verify"
        ) from error
    if passed is not True:
        raise ConversionError(f"{path} says that the weights are not those of the checkpoint; export again, nothing was pushed")


# --- --dry-run -----------------------------------------------------------------------------------------------------------


def _tell(files: Sequence[LocalFile], store: Store) -> None:
    """What a push would do, as far as the place can be asked; changes nothing."""
    try:
        listing = store.listing()
    except Unreachable as error:
        print(f"what {store.url} holds is not known: {error}")
        for file in files:
            print(f"  {naturalsize(file.size):>10}  {file.name}")
        print(f"the folder has {_amount(len(files), sum(file.size for file in files))}")
        return
    hash_all([file for file in files if file.name in listing.files and listing.files[file.name].size == file.size])
    difference = compare(files, listing)
    print(store.url + (f": {listing.note}" if listing.note else ""))
    for verb, some in (("send", difference.new), ("keep", difference.kept)):
        for file in some:
            print(f"  {verb:6}  {naturalsize(file.size):>10}  {file.name}")
    for name in difference.obsolete:
        print(f"  {'remove':6}  {'':>10}  {name}")
    sent, kept = ((len(some), sum(file.size for file in some)) for some in (difference.new, difference.kept))
    print(f"would send {_amount(*sent)}; {_amount(*kept)} are there; {len(difference.obsolete)} would be removed")


def _amount(count: int, size: int) -> str:
    return f"{count} file{'s' if count != 1 else ''} ({naturalsize(size)})"
