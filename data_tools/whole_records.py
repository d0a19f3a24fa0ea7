"""The readers of data_tools with every field of a record kept, for commands that copy documents. Imports datatrove.

Used by `decontaminate`, which must hand on what it was given: ids, addresses and scores stand beside the text. A key may also
hold a conversation, or anything else of lists and mappings: its texts are searched as one, the record stays as it is.
"""

from typing import Any

from datatrove.data import Document

from data_tools.datatrove_steps import READERS, StrictReader
from data_tools.inputs import Inputs


def record_reader(inputs: Inputs) -> StrictReader:
    """A reader over the files whose documents' `metadata` is the whole record, the text included."""
    base: Any = READERS[inputs.kind]

    class WholeRecords(base):
        """Of any of the kinds."""

        def needed(self, names: list[str], filepath: str) -> list[str]:
            super().needed(names, filepath)
            return names

        def get_document_from_dict(self, data: Any, source_file: str, id_in_file: int | str) -> Document | None:
            texts = data
            if isinstance(data, dict):
                texts = {**data, **{key: _as_text(data[key]) for key in self.text_keys if key in data}}
            document: Document | None = super().get_document_from_dict(texts, source_file, id_in_file)
            if document:
                document.metadata = data
            return document

    reader: StrictReader = WholeRecords(list(inputs.files), inputs.text_key)
    return reader


def _as_text(value: Any) -> Any:
    """Texts inside lists and mappings, to the bottom, a line each; other values as they are."""
    if isinstance(value, list | dict):
        inside = value.values() if isinstance(value, dict) else value
        return "\n".join(text for item in inside if isinstance(text := _as_text(item), str))
    return value
