"""datatrove's readers, made strict: the only file that subclasses them. Imported when a command needs datatrove.

    files (JSON Lines, Parquet, Arrow, text) -> reader -> Document -> filters -> shard_writer.py

A document without its text and a damaged or truncated file end the run with one sentence; datatrove logs them and goes on,
so a training set could lose documents unseen. Lines that give no document are counted and named, up to a limit that is
zero unless told otherwise. Documents whose text is empty are left out and counted.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
from datatrove.data import Document
from datatrove.pipeline.readers.base import BaseDiskReader
from loguru import logger

from data_tools.compressed_lines import decompressed_lines
from smol_config import UserError


class StrictReader(BaseDiskReader):
    """What the readers share: an explicit file list, and no document lost in silence."""

    def __init__(self, files: list[str], text_key: str, columns: tuple[str, ...] = (), max_broken_lines: int = 0) -> None:
        """`text_key` may name several keys, `question+answer`: their texts are joined by a new line. `columns` are the keys
        kept beside the text, as the documents' metadata, for steps that look at them."""
        super().__init__("/", text_key=text_key)
        self.text_keys = text_key.split("+")
        self.files, self.columns, self.max_broken_lines = files, columns, max_broken_lines
        self.empty_documents = 0
        self.broken_lines: list[dict[str, Any]] = []
        """file, line and error of each."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents of this task's files: task r of n has the files r, r + n, r + 2n, ..."""
        for file in self.files[rank::world_size]:
            yield from self.read_file(file)

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
        """The document of one record; None for an empty text. Only text and `columns` are kept."""
        where = f"{source_file}, record {id_in_file}"
        if not isinstance(data, dict):
            raise UserError(
                f"{where}: {type(data).__name__} where an object with the key {self.text_key!r} should stand; mend it"
            )
        texts = []
        for key in self.text_keys:
            if key not in data:
                keys = ", ".join(map(repr, data)) or "none"
                raise UserError(f"{where}: no key {key!r}; keys there: {keys}; name the text's key with --text-key")
            if data[key] is not None and not isinstance(data[key], str):
                raise UserError(
                    f"{where}: {key!r} holds {type(data[key]).__name__}, not text; name the text's key with --text-key"
                )
            texts.append(data[key])
        text = "\n".join(text for text in texts if text)
        if not text:
            self.empty_documents += 1
            return None
        metadata = {column: data.get(column) for column in self.columns}
        return Document(text=text, id=f"{source_file}/{id_in_file}", metadata=metadata)

    def break_line(self, filepath: str, number: int, error: UserError) -> None:
        """Count a line that gives no document; raises UserError past the limit."""
        self.broken_lines.append({"file": filepath, "line": number, "error": str(error)})
        if not self.max_broken_lines:
            raise error
        if len(self.broken_lines) > self.max_broken_lines:
            raise UserError(f"more lines are broken than --max-broken-lines {self.max_broken_lines}; the last: {error}")


class JsonlReader(StrictReader):
    """JSON Lines, also gzip and zstd; blank lines are passed over."""

    name = "JSON Lines"

    def documents_of(self, filepath: str) -> Iterator[Document]:
        with decompressed_lines(filepath) as lines:
            for number, line in enumerate(lines, start=1):
                if line.isspace():
                    continue
                document = None
                try:
                    document = self.get_document_from_dict(_parsed(line, filepath, number), filepath, number)
                except UserError as error:
                    self.break_line(filepath, number, error)
                if document:
                    yield document


class ParquetReader(StrictReader):
    """Parquet; only the columns that are needed are read."""

    name = "Parquet"
    batch_rows = 1000

    def documents_of(self, filepath: str) -> Iterator[Document]:
        with pyarrow.parquet.ParquetFile(filepath) as file:
            columns = self.needed(file.schema_arrow.names, filepath)
            yield from self.documents_of_batches(file.iter_batches(batch_size=self.batch_rows, columns=columns), filepath)

    def needed(self, names: list[str], filepath: str) -> list[str]:
        """The columns to read; raises UserError, naming those that are there, when the text's is missing."""
        if not set(self.text_keys) <= set(names):
            self.get_document_from_dict(dict.fromkeys(names), filepath, 1)
        return [*self.text_keys, *(column for column in self.columns if column in names)]

    def documents_of_batches(self, batches: Iterable[pyarrow.RecordBatch], filepath: str) -> Iterator[Document]:
        """The documents of a table's batches."""
        records = (record for batch in batches for record in batch.to_pylist())
        for number, record in enumerate(records, start=1):
            if document := self.get_document_from_dict(record, filepath, number):
                yield document


class ArrowReader(ParquetReader):
    """Arrow streams, as `datasets.save_to_disk` writes them."""

    name = "Arrow"

    def documents_of(self, filepath: str) -> Iterator[Document]:
        with pyarrow.memory_map(filepath) as source, pyarrow.ipc.open_stream(source) as stream:
            columns = self.needed(stream.schema.names, filepath)
            yield from self.documents_of_batches((batch.select(columns) for batch in stream), filepath)


class TextReader(StrictReader):
    """Plain UTF-8 text: one file, one document, line ends kept as they are."""

    name = "Text"

    def documents_of(self, filepath: str) -> Iterator[Document]:
        text = Path(filepath).read_bytes().decode("utf8")
        if document := self.get_document_from_dict({self.text_key: text}, filepath, 1):
            yield document


READERS = {"jsonl": JsonlReader, "parquet": ParquetReader, "arrow": ArrowReader, "text": TextReader}


def _parsed(line: bytes, filepath: str, number: int) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{filepath}, record {number}: not valid JSON ({error}); mend or remove the line") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep datatrove's log lines off the terminal; what goes wrong comes as an exception."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")
