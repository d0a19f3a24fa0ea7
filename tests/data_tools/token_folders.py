"""Token dataset folders for the tests of data_tools: written from arrays, copied, damaged, listed anew."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smol_data.manifest import FileEntry, Manifest, TokenizerIdentity, read_manifest, sha256_of_file
from smol_data.shards import TokenDataset


def write_dataset(folder: Path, shards: list[list[NDArray[Any]]], dtype: str = "uint16", **settings: Any) -> Path:
    """A `.ds` folder: each shard is a list of documents, written as they are. `settings` are fields of the manifest."""
    folder.mkdir(parents=True)
    files = []
    for number, documents in enumerate(shards):
        path = folder / f"{number:05d}.ds"
        tokens = np.concatenate(documents) if documents else np.empty(0)
        tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(path)
        np.cumsum([len(document) for document in documents], dtype="<u8").tofile(f"{path}.index")
        files.append(_entry(path, tokens=len(tokens), documents=len(documents)))
        files.append(_entry(Path(f"{path}.index")))
    fields: dict[str, Any] = {"tokenizer": TokenizerIdentity(name="none", sha256="0" * 64), "vocab_size": 2**16, "eos_id": 0}
    counts = {name: sum(getattr(entry, name) or 0 for entry in files) for name in ("tokens", "documents")}
    Manifest(dtype=dtype, files=files, **counts, **(fields | settings)).write(folder)  # type: ignore[arg-type]
    return folder


def random_documents(seed: int, count: int, mean: int = 40, vocab_size: int = 2000) -> list[NDArray[np.int64]]:
    """Documents of random length and ids, each ending with its EOS 0."""
    random = np.random.default_rng(seed)
    lengths = 1 + random.geometric(1 / mean, size=count)
    return [np.append(random.integers(1, vocab_size, size=length - 1), 0) for length in lengths]


def copied(folder: Path, to: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(folder, to)
    return to


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Change bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def list_anew(folder: Path, **settings: Any) -> None:
    """Write the manifest again with the files' present sizes and hashes, as if they had been written like that."""
    manifest = read_manifest(folder)
    files = [
        entry.model_copy(update={"bytes": (path := folder / entry.name).stat().st_size, "sha256": sha256_of_file(path)})
        for entry in manifest.files
    ]
    manifest.model_copy(update={"files": files, **settings}).write(folder)


def stream_of(folder: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All tokens and all document ends of a `.ds` folder, read from the files alone."""
    manifest = read_manifest(folder)
    tokens = [np.fromfile(folder / shard.name, dtype=manifest.token_dtype) for shard in manifest.shards]
    starts = np.cumsum([0, *map(len, tokens)])
    ends = [np.fromfile(folder / f"{shard.name}.index", dtype="<u8").astype(np.int64) for shard in manifest.shards]
    return np.concatenate(tokens), np.concatenate([part + start for part, start in zip(ends, starts, strict=False)])


def windows_of(folder: Path, sequence_length: int) -> list[list[int]]:
    """All windows of a folder, as the trainer reads them."""
    dataset = TokenDataset(folder, sequence_length)
    windows = [dataset.window(index).tokens.tolist() for index in range(dataset.num_windows)]
    dataset.close()
    return windows


def assert_reads_as(folder: Path, stream: NDArray[Any], sequence_length: int = 64) -> None:
    """The windows that the trainer reads are the stream's tokens."""
    windows = windows_of(folder, sequence_length)
    assert len(windows) == (len(stream) - 1) // sequence_length
    for number, window in enumerate(windows):
        begins = number * sequence_length
        assert window == stream[begins : begins + sequence_length + 1].tolist()


def _entry(path: Path, **counts: int) -> FileEntry:
    return FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_of_file(path), **counts)  # type: ignore[arg-type]
