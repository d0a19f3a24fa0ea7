"""datatrove's pipeline steps, made strict: the only file that subclasses them. Imported when a command needs datatrove.

    reader (JSON Lines, Parquet, text) -> Document -> ShardWriter -> *.ds, *.ds.index, *.ds.metadata

Reading, sharding, compression, tokenising in batches, shuffling and scheduling stay datatrove's. What is changed here:

- A line that is not JSON, a document without its text and a damaged file end the run with one sentence. datatrove logs
  them and goes on, so a training set could lose documents unseen. Documents whose text is empty are left out and counted.
- The tokenizer is loaded without the truncation and padding that its file may ask for, a special token's name inside a
  document stays plain text (else a text about tokenizers would end its own document), and exactly one EOS is appended.
- Workers print nothing; what goes wrong travels to the parent as an exception.
"""

import gzip
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import zstandard
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from data_tools.tokenizer_file import TokenizerFile
from smol_config import UserError

EMPTY_DOCUMENTS = "empty_documents"  # name of the counter in datatrove's statistics


class _StrictReader(BaseDiskReader):
    """What the three readers share: an explicit file list, and no document lost in silence."""

    def __init__(self, files: list[str], text_key: str) -> None:
        super().__init__("/", text_key=text_key)
        self.files = files

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents of this task's files."""
        for document in self.read_files_shard(self.files[rank::world_size]):
            self.update_doc_stats(document)
            yield document

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The documents of one file; raises UserError when the file or a document of it cannot be used."""
        try:
            yield from self.documents_of(filepath)
        except UserError:
            raise
        except Exception as error:  # whatever the decompressor, Parquet or the file system has to say
            message = str(error) or type(error).__name__
            raise UserError(f"{filepath} cannot be read ({message}); fetch or write the file again, or leave it out") from error

    def documents_of(self, filepath: str) -> Iterator[Document]:
        """To be written by each kind of reader."""
        raise NotImplementedError

    def get_document_from_dict(self, data: Any, source_file: str, id_in_file: int | str) -> Document | None:
        """The document of one record; None for an empty text. Only the text is kept: nothing else reaches the shards."""
        where = f"{source_file}, record {id_in_file}"
        if not isinstance(data, dict):
            raise UserError(
                f"{where}: {type(data).__name__} where an object with the key {self.text_key!r} should stand; mend it"
            )
        if self.text_key not in data:
            keys = ", ".join(map(repr, data)) or "none"
            raise UserError(f"{where}: no key {self.text_key!r}; keys there: {keys}; name the text's key with --text-key")
        text = data[self.text_key]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{where}: {self.text_key!r} holds {type(text).__name__}, not text; name the text's key with --text-key"
            )
        if not text:
            self.stat_update(EMPTY_DOCUMENTS)
            return None
        return Document(text=text, id=f"{source_file}/{id_in_file}")


class StrictJsonlReader(_StrictReader, JsonlReader):
    """JSON Lines, also gzip and zstd; blank lines are passed over."""

    compression = "infer"

    def documents_of(self, filepath: str) -> Iterator[Document]:
        with _lines(filepath) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise UserError(
                        f"{filepath}, record {number}: not valid JSON ({error}); mend or remove the line"
                    ) from error
                if document := self.get_document_from_dict(record, filepath, number):
                    yield document


class StrictParquetReader(_StrictReader, ParquetReader):
    """Parquet; of its columns only the text is read."""

    batch_size = 1000

    def documents_of(self, filepath: str) -> Iterator[Document]:
        with pyarrow.parquet.ParquetFile(filepath) as file:
            columns = file.schema_arrow.names
            if self.text_key not in columns:
                self.get_document_from_dict(dict.fromkeys(columns), filepath, 1)  # raises, naming the columns
            number = 0
            for batch in file.iter_batches(batch_size=self.batch_size, columns=[self.text_key]):
                for record in batch.to_pylist():
                    number += 1
                    if document := self.get_document_from_dict(record, filepath, number):
                        yield document


class TextReader(_StrictReader):
    """Plain UTF-8 text: one file, one document, line ends kept as they are."""

    name = "Text"

    def documents_of(self, filepath: str) -> Iterator[Document]:
        text = Path(filepath).read_bytes().decode("utf8")
        if document := self.get_document_from_dict({self.text_key: text}, filepath, 1):
            yield document


READERS = {"jsonl": StrictJsonlReader, "parquet": StrictParquetReader, "text": TextReader}


@contextmanager
def _lines(filepath: str) -> Iterator[Iterable[bytes]]:
    """The lines of a file, decompressed by its ending."""
    with Path(filepath).open("rb") as file:
        if filepath.endswith(".gz"):
            yield gzip.GzipFile(fileobj=file)
        elif filepath.endswith(".zst"):
            # Files of many frames (made by `cat`, by parallel writers) are one stream; by default a read ends with its frame,
            # and whether more follows is left to the caller.
            yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
        else:
            yield file


class ShardWriter(DocumentTokenizer):
    """Tokenises documents, appends EOS, shuffles the documents of each shard with a fixed seed and writes the shard.

    `seed` is the same in all tasks; orders differ because the documents do. The name that datatrove writes into
    `*.ds.metadata` is the tokenizer's hash, not its path: equal text and tokenizer give equal files wherever they lie.
    """

    def __init__(self, folder: str, tokenizer: TokenizerFile, seed: int) -> None:
        super().__init__(
            folder,
            tokenizer_name_or_path=f"sha256:{tokenizer.sha256}",
            eos_token=tokenizer.eos_token,
            batch_size=1000,  # encodings hold about 100 bytes a token until a batch is written
            seed=seed,
            shuffle_documents=True,
        )
        self.source = tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded in the worker: of the settings below, some do not survive pickling."""
        tokenizer = Tokenizer.from_file(str(self.source.file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        tokenizer.post_processor = TemplateProcessing(single="$A <EOS>", special_tokens=[("<EOS>", self.source.eos_id)])
        return tokenizer

    @cached_property
    def token_size(self) -> int:
        """Bytes per id."""
        return 2 if self.source.dtype == "uint16" else 4


@contextmanager
def quiet() -> Iterator[None]:
    """Keep datatrove's log lines off the terminal; what goes wrong comes as an exception."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor without its log lines. With one worker everything runs in this process."""

    def _launch_run_for_rank(self, *arguments: Any, **options: Any) -> Any:
        if self.workers > 1:
            # This runs in the worker process, which has one core to itself and settings of its own.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            logger.disable("datatrove")
        return super()._launch_run_for_rank(*arguments, **options)

    def run(self) -> Any:
        """Run all tasks; returns datatrove's statistics. An exception of a task arrives here as it was raised."""
        with quiet():
            return super().run()
