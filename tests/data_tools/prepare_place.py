"""A place where `prepare` finds all it needs: a mirror of two repositories, a catalogue, a configuration of real text."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from document_files import read_documents, write_documents
from tokenized import texts_in

from data_tools.sampling import position

SHARE = 0.05
SHARED = "A paragraph that stands in both datasets, and is held out by one of them."


class Place:
    """A folder with a mirror of two repositories, a catalogue and a configuration that needs four datasets."""

    def __init__(self, root: Path, corpus: Path, tokenizer: Path) -> None:
        self.root, self.tokenizer = root, tokenizer
        self.mirror, self.text, self.tokens = root / "mirror", root / "text", root / "tokens"
        self.config = root / "config.yaml"
        self.texts = {name: [d["text"] for d in read_documents(corpus / name)] for name in ("code", "docs")}
        self.texts = {name: [text for text in texts if len(text) < 5000][:100] for name, texts in self.texts.items()}
        for texts in self.texts.values():
            texts.append(shared_text())
        self._write_mirror()
        catalogue = {
            "code": {"repository": "org/code", "files": ["data/train-*.parquet"], "text_key": "content", "licence": "psf-2.0"},
            "docs": {"repository": "org/docs", "files": ["**/*.jsonl.gz"], "text_key": "text", "tokens": 5000, "gigabytes": 2},
            "secret": {"published": False, "note": "never shown to anyone"},
        }
        catalogue["code"]["filter"] = [{"column": "language", "equals": "Python"}, {"column": "stars", "at_least": 2}]
        groups = {name: {"group": "code", **entry} for name, entry in catalogue.items()}
        (root / "catalogue.yaml").write_text(yaml.dump({"datasets": groups}))
        self.write_config(["code", "docs"])

    def _write_mirror(self) -> None:
        texts = self.texts["code"]
        columns = {"content": texts, "language": ["Python"] * len(texts), "stars": [2] * len(texts)}
        more = {"content": ["other language", "too few stars"], "language": ["C", "Python"], "stars": [9, 1]}
        rows = {name: [*columns[name], *more[name]] for name in columns}
        (self.mirror / "org/code/data").mkdir(parents=True)
        for part in range(3):
            table = pyarrow.table({name: values[part::3] for name, values in rows.items()})
            pyarrow.parquet.write_table(table, self.mirror / f"org/code/data/train-0000{part}.parquet")
        (self.mirror / "org/code/README.md").write_text("---\nlicense: psf-2.0\n---\n")
        for part in range(2):
            plain = write_documents(self.root / "plain.jsonl", self.texts["docs"][part::2])
            path = self.mirror / f"org/docs/deep/part-{part}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        (self.root / "plain.jsonl").unlink()

    def write_config(self, names: list[str], **more: Any) -> None:
        """A configuration that reads these datasets and evaluates on code."""
        data = {
            "tokenizer": str(self.tokenizer),
            "sequence_length": 64,
            "datasets": {name: str(self.tokens / name) for name in names},
            "held_out": {"code": str(self.tokens / "held_out" / "code")},
            "stages": [{"name": "s", "steps": 100, "weights": dict.fromkeys(names, 1)}],
            **more,
        }
        self.config.write_text(yaml.dump({"data": data, "train": {"global_batch_size": 4}, "model": {"vocab_size": 2000}}))

    def arguments(self, *more: object, mirror: bool = True) -> tuple[object, ...]:
        hub = ("--hub-root", self.mirror) if mirror else ()
        root = ("--text-root", self.text, "--held-out-share", SHARE, "--workers", 1)
        return ("prepare", "--config", self.config, *root, *hub, *more)

    def held_out(self, name: str) -> list[str]:
        return [text for text in self.texts[name] if position(text.encode(), "held out", 0) < SHARE]

    def read(self, folder: str) -> list[str]:
        return sorted(texts_in(self.tokens / folder, self.tokenizer))


def shared_text() -> str:
    """A text of which it is known that it is held out."""
    return next(text for index in range(1000) if position((text := f"{SHARED} {index}").encode(), "held out", 0) < SHARE)
