"""What the tests of staging build on: small datasets with true manifests, a run of four stages over them, one node."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from tiny_runs import QUICKSTART

from slurm.staging.__main__ import main
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, TokenizerIdentity
from smol_train.checkpoint_folder import MARKER, STATE, TrainState, folder_name, state_text

NAMES = ("common", "one", "two", "three", "four", "held_out/common")
FILES = [f"{number}.ds" for number in range(3)]
SIZE = 3000

STAGES = """
    - {name: first, steps: 4, weights: {one: 0.5, common: 0.5}}
    - {name: second, steps: 4, weights: {two: 0.5, common: 0.5}}
    - {name: third, steps: 4, weights: {three: 1.0}}
    - {name: fourth, steps: 4, weights: {four: 1.0, one: 0.0}}
"""


def make_dataset(folder: Path, files: Iterable[str] = FILES, size: int = SIZE) -> Manifest:
    """A folder of random bytes, with the manifest that describes them."""
    folder.mkdir(parents=True)
    entries = []
    for name in files:
        content = random.Random(f"{folder}/{name}").randbytes(size)
        (folder / name).write_bytes(content)
        entries.append(FileEntry(name=name, bytes=size, sha256=hashlib.sha256(content).hexdigest()))
    tokenizer = TokenizerIdentity(name="t", sha256="0" * 64)
    manifest = Manifest(tokenizer=tokenizer, vocab_size=10, dtype="uint16", tokens=0, documents=0, files=entries)
    manifest.write(folder)
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Of what the manifest is about, and the manifest itself."""
    return {name: (folder / name).read_bytes() for name in (*FILES, MANIFEST_NAME)}


class StagingSite:
    """One node n1 with a disk of its own, a shared folder, and a run that has not begun."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str] = NAMES) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.shared, self.disk, self.run = folder / "shared", folder / "disk" / "n1", folder / "run"
        self.config = folder / "config.yaml"
        self.manifests = {name: make_dataset(self.shared / name) for name in names}
        (self.shared / "tokenizer").mkdir()
        self.configure()
        self.set(DATA_ROOT=self.shared, SMOL_DATA_SOURCE="", SMOL_LOCAL_DATA=folder / "disk" / "%N", SLURMD_NODENAME="n1")
        for name in ("SLURM_STEP_NUM_NODES", "SLURM_NODEID"):
            monkeypatch.delenv(name, raising=False)

    def configure(self, folders: Mapping[str, str] = {}) -> None:
        """Write the configuration; `folders` of datasets that do not have their names."""
        datasets = {name: folders.get(name, f"${{DATA_ROOT}}/{name}") for name in ("common", "one", "two", "three", "four")}
        text = "".join(f'    {name}: "{folder}"\n' for name, folder in datasets.items())
        self.config.write_text(
            f"base: {QUICKSTART}\n"
            f"train: {{output_dir: {self.run}}}\n"
            "optim: {schedule: {warmup_steps: 1, decay_steps: 2}}\n"
            'data:\n  tokenizer: "${DATA_ROOT}/tokenizer"\n'
            f"  datasets:\n    code: null\n    docs: null\n{text}"
            '  held_out: {code: null, docs: null, common: "${DATA_ROOT}/held_out/common"}\n'
            f"  stages:{STAGES}"
        )

    def set(self, **settings: object) -> None:
        for name, value in settings.items():
            self.monkeypatch.setenv(name, str(value))

    def checkpoint(self, step: int) -> Path:
        folder = self.run / folder_name(step)
        folder.mkdir(parents=True)
        (folder / STATE).write_text(state_text(TrainState(step=step)))
        (folder / MARKER).touch()
        return folder

    def arguments(self, *options: str) -> list[str]:
        return ["--config", str(self.config), "--run", str(self.run), "--out", str(self.folder / "out"), *options]

    def stage(self, *options: str) -> int:
        """The command's exit code."""
        return main(self.arguments(*options))

    def copied(self) -> list[str]:
        """Names of the datasets that are whole on the disk."""
        return [name for name in NAMES if not (self.disk / name).is_symlink() and (self.disk / name / MANIFEST_NAME).exists()]

    def linked(self) -> list[str]:
        return sorted(str(path.relative_to(self.disk)) for path in self.disk.rglob("*") if path.is_symlink())
