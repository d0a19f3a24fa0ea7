"""A configuration for the tests of `inspect`: real text in three datasets, two stages, a skipped range; and its JSON read."""

import json
from pathlib import Path
from typing import Any

import yaml
from document_files import read_documents, write_documents

LENGTH, BATCH = 64, 8


def write_run(folder: Path, corpus: Path, tokenizer: Path, tokens: Path) -> Path:
    """Datasets of files, of prose and of paragraphs as documents. The skipped range is in the first stage."""
    from data_tools.__main__ import main

    arguments = ["tokenize", str(corpus / "held_out" / "code"), str(folder / "code"), "--tokenizer", str(tokenizer)]
    assert main(arguments) == 0
    texts = [text for document in read_documents(corpus / "held_out" / "docs") for text in document["text"].split("\n\n")]
    write_documents(folder / "paragraphs.jsonl", [text for text in texts if text.strip()])
    arguments = ["tokenize", str(folder / "paragraphs.jsonl"), str(folder / "lines"), "--tokenizer", str(tokenizer)]
    assert main(arguments) == 0
    mapping = {
        "data": {
            "tokenizer": str(tokenizer),
            "sequence_length": LENGTH,
            "seed": 3,
            "datasets": {"code": str(folder / "code"), "docs": str(tokens), "lines": str(folder / "lines")},
            "stages": [
                {"name": "stable", "steps": 5, "weights": {"code": 0.4, "docs": 0.2, "lines": 0.4}},
                {"name": "decay", "tokens": 3 * BATCH * LENGTH, "weights": {"docs": 3, "lines": 7}},
            ],
            "skip_samples": [[17, 19]],
        },
        "train": {"global_batch_size": BATCH},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf8")
    return path


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def text_of(seen: dict[str, Any]) -> str:
    return "".join(document["text"] for document in seen["documents"])
