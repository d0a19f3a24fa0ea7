"""What happens on one node, in its order: manifests, what is missing, room for it, links, files."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from humanize import naturalsize

from slurm.staging.disk import THREADS, Disk
from slurm.staging.fetch import DELAYS, Fetcher
from slurm.staging.needs import Needs, StagingError
from slurm.staging.peers import Step
from slurm.staging.sources import Silent, Source
from smol_data.manifest import Manifest, read_manifest


def load_node(needs: Needs, source: Source, lender: Path, disk: Disk, step: Step, thorough: bool = False) -> None:
    """Copy to the disk what is needed soon, and link the rest to `lender`, the folder that all nodes see.

    `thorough`: every byte of what is there is read again. Raises UserError for what must be mended, Silent when the source did
    not answer for long, OSError for a disk that does not do as it should.
    """
    if needs.elsewhere:
        step.say(f"not below DATA_ROOT, and so not loaded: {', '.join(needs.elsewhere)}")
    copied = [*needs.soon, *(name for name in needs.later if disk.holds(name) or not (lender / name).exists())]
    for name in needs.others:
        if not disk.holds(name) and not (lender / name).exists():
            raise StagingError(f"{lender / name} is not there, but the configuration names it; put it there, or name another")

    with ThreadPoolExecutor(THREADS) as threads:
        manifests = dict(zip(copied, threads.map(lambda name: _manifest(name, source, disk, step), copied), strict=True))
    missing = {name: disk.missing(name, manifest, thorough) for name, manifest in manifests.items()}
    missing = {name: files for name, files in missing.items() if files or not disk.is_whole(name, manifests[name])}
    size = sum(disk.bytes_to_come(name, files) for name, files in missing.items())
    for name in disk.make_room(size, copied, ", ".join(missing)):
        step.say(f"removed {name}, which is not needed soon, for want of room")
    links = _link((*needs.later, *needs.past, *needs.others), lender, disk)
    whole = naturalsize(sum(entry.bytes for manifest in manifests.values() for entry in manifest.files))
    step.say(f"{len(copied)} datasets ({whole}) in {disk.root}, of which {naturalsize(size)} are to come; {links} links")
    if missing:
        fetcher = Fetcher(disk, source, step)
        fetcher.fetch(manifests, missing)
        step.say(
            "loaded: " + (", ".join(f"{files} files from {place}" for place, files in fetcher.read.items()) or "all was there")
        )


def _link(names: Iterable[str], lender: Path, disk: Disk) -> int:
    """Link what is not on the disk itself; returns how many links there are."""
    links = [name for name in names if not disk.holds(name) and (lender / name).exists()]
    for name in links:
        disk.link(name, lender / name)
    return len(links)


def _manifest(name: str, source: Source, disk: Disk, step: Step) -> Manifest:
    """By the source; where it does not answer, the one by which the node's own copy was verified will do."""
    for delay in (*DELAYS, None):
        try:
            return source.manifest(name)
        except Silent as error:
            mark = disk.mark(name)
            if mark and mark.whole:
                step.say(f"{error}; going by the copy of {name} that is here")
                return read_manifest(disk.root / name)
            if delay is None:
                raise
            step.say(f"{error}; next attempt in {delay:.0f} s")
            time.sleep(delay)
    raise AssertionError("the last attempt raises")
