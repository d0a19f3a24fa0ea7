"""What happens on one node, in its order: manifests, what is missing, room for it, links, files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from humanize import naturalsize

from slurm.staging.disk import THREADS, Disk
from slurm.staging.fetch import Fetcher
from slurm.staging.needs import Needs
from slurm.staging.peers import Step
from slurm.staging.sources import Patience, Silent, Source
from smol_data.manifest import Manifest, read_manifest


def load_node(needs: Needs, source: Source, lender: Path, disk: Disk, step: Step, thorough: bool = False) -> None:
    """Copy to the disk what is needed soon, and link the rest to `lender`, the folder that all nodes see.

    `thorough`: every byte of what is there is read again. Raises UserError for what must be mended, Silent when the source did
    not answer for long, OSError for a disk that does not do as it should.
    """
    if needs.elsewhere:
        step.say(f"not below DATA_ROOT, and so not loaded: {', '.join(needs.elsewhere)}")
    copied = [*needs.soon, *(name for name in needs.later if disk.holds(name) or not (lender / name).exists())]
    patience = Patience(step.say)
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda name: _manifest(name, source, disk, patience), copied)
        manifests = dict(zip(copied, found, strict=True))
    missing = {name: disk.missing(name, manifest, thorough) for name, manifest in manifests.items()}
    missing = {name: files for name, files in missing.items() if files or not disk.is_whole(name)}
    size = sum(disk.bytes_to_come(name, files) for name, files in missing.items())
    for name in disk.make_room(size, copied, ", ".join(missing)):
        step.say(f"removed {name}, which is not needed soon, for want of room")
    links = [name for name in (*needs.later, *needs.rest) if not disk.holds(name) and (lender / name).exists()]
    for name in links:
        disk.link(name, lender / name)
    whole = naturalsize(sum(entry.bytes for manifest in manifests.values() for entry in manifest.files))
    step.say(f"{len(copied)} datasets ({whole}) in {disk.root}, of which {naturalsize(size)} are to come; {len(links)} links")
    if missing:
        fetcher = Fetcher(disk, source, step)
        fetcher.fetch(manifests, missing)
        places = [f"{files} files from {place}" for place, files in sorted(fetcher.read.items())]
        step.say(f"loaded: {', '.join(places) or 'all was there'}")


def _manifest(name: str, source: Source, disk: Disk, patience: Patience) -> Manifest:
    """By the source; where it does not answer, the one of the node's own copy will do if that is whole."""

    def find() -> Manifest:
        try:
            return source.manifest(name)
        except Silent as error:
            if not disk.is_whole(name):
                raise
            patience.say(f"{error}; going by the copy of {name} that is here")
            return read_manifest(disk.root / name)

    return patience.with_(find)
