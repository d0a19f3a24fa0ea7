"""The text of one of a run's datasets: DIR/NAME under --text-root, however it came there.

Used by `prepare` and `train-tokenizer --config`. What `prepare` fetched is read as the catalogue says: the listed files, their
text's key, the rules. A folder without a list is the user's own text: all its files are read, by the catalogue's key if it
names one.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_tools.catalogue import CatalogueEntry, Rule
from data_tools.hub_listing import kept_listing
from data_tools.inputs import Inputs, find_inputs


@dataclass(frozen=True)
class DatasetText:
    """Files, and which of their documents count."""

    inputs: Inputs
    rules: tuple[Rule, ...] = ()
    commit: str | None = None
    """Of the repository that the files came from; None for the user's own text."""

    def keeps(self, metadata: dict[str, Any]) -> bool:
        """Whether a document, by its `inputs.columns`, meets all rules."""
        return all(rule.holds(metadata) for rule in self.rules)


def open_text(folder: Path, entry: CatalogueEntry | None, text_key: str = "text") -> DatasetText:
    """The text in `folder`; raises UserError when there is nothing that can be read. `text_key` is for own text only."""
    listing = kept_listing(folder)
    key = (entry.text_key if entry else None) or text_key
    if listing is None:
        return DatasetText(find_inputs([folder], key))
    rules = tuple(entry.filter) if entry else ()
    inputs = find_inputs([folder / file.path for file in listing.files], key)
    return DatasetText(replace(inputs, columns=tuple(rule.column for rule in rules)), rules, listing.commit)
