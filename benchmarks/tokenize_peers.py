"""The peers of benchmarks.tokenize_text: datatrove's stock pipeline, and the flow of Megatron-LM's tools/preprocess_data.py.

    python -m benchmarks.tokenize_peers datatrove|megatron TEXT_DIR OUT_DIR TOKENIZER_DIR WORKERS

Both read the same JSON Lines and end each document with the same EOS. preprocess_data.py is not in the megatron-core wheel; its
flow is made again here as it stands in the repository: a Pool of encoders fed line by line, 32 at a time, the documents added
to megatron-core's own IndexedDatasetBuilder by the parent.
"""

import json
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 32  # lines handed to a worker at a time, as in preprocess_data.py


def run_datatrove(text: Path, output: Path, tokenizer: Path, workers: int) -> None:
    """Reader, DocumentTokenizer with its document shuffle, local executor; one task a file, all other settings the defaults."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    writer = DocumentTokenizer(str(output), str(tokenizer / "tokenizer.json"), eos_token=_eos(tokenizer), seed=0)
    pipeline = [JsonlReader(str(text), glob_pattern="*.jsonl"), writer]
    tasks = len(list(text.glob("*.jsonl")))
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=str(output.parent / "logs")).run()


class Encoder:
    """As preprocess_data.py has it: the tokenizer is the class's, loaded by each worker."""

    tokenizer: Any
    eos: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def initializer(self) -> None:
        from transformers import AutoTokenizer

        Encoder.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        Encoder.eos = Encoder.tokenizer.eos_token_id

    def encode(self, line: str) -> list[int]:
        return [*Encoder.tokenizer(json.loads(line)["text"]).input_ids, Encoder.eos]


def run_megatron(text: Path, output: Path, tokenizer: Path, workers: int) -> None:
    """One `.bin` and `.idx` of all files, in input order."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from transformers import AutoTokenizer

    output.mkdir()
    dtype = np.uint16 if len(AutoTokenizer.from_pretrained(tokenizer)) < 65500 else np.int32
    builder = IndexedDatasetBuilder(str(output / "text_document.bin"), dtype=dtype)
    encoder = Encoder(tokenizer)
    with multiprocessing.Pool(workers, initializer=encoder.initializer) as pool:
        for ids in pool.imap(encoder.encode, _lines(text), CHUNK):
            builder.add_document(torch.IntTensor(ids), [len(ids)])
    builder.finalize(str(output / "text_document.idx"))


def _lines(text: Path) -> Iterator[str]:
    for path in sorted(text.glob("*.jsonl")):
        with path.open(encoding="utf8") as file:
            yield from file


def _eos(tokenizer: Path) -> str:
    return str(json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf8"))["eos_token"])


if __name__ == "__main__":
    _side, _text, _output, _tokenizer, _workers = sys.argv[1:]
    {"datatrove": run_datatrove, "megatron": run_megatron}[_side](Path(_text), Path(_output), Path(_tokenizer), int(_workers))
