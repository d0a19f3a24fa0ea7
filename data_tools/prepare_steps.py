"""What `prepare` leaves out of a dataset, as datatrove steps for `tokenize`: by the catalogue's rules, and what is held out.

    reader -> CatalogueRules -> HeldOut("train" or "held_out") -> ids

A document is held out when its number (data_tools.sampling: of its text and the seed alone) is below the share. So it is on
the same side in every dataset: a text that two datasets have in common, and one of them holds out, is trained on in neither.
"""

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from data_tools.catalogue import Rule
from data_tools.prepare_plan import Side
from data_tools.sampling import position


class CatalogueRules(BaseFilter):
    """Keeps the documents that meet all rules; the reader brings the rules' columns as metadata."""

    name = "Catalogue rules"

    def __init__(self, rules: list[Rule]) -> None:
        super().__init__()
        self.rules = rules

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document is kept; if not, the column that decides."""
        broken = next((rule.column for rule in self.rules if not rule.holds(doc.metadata)), None)
        return True if broken is None else (False, broken)


class HeldOut(BaseFilter):
    """Keeps one side: the documents whose number is below `share` (held out) or the others (train)."""

    name = "Held out"

    def __init__(self, side: Side, share: float, seed: int) -> None:
        super().__init__()
        self.side, self.share, self.seed = side, share, seed

    def filter(self, doc: Document) -> bool:
        """Whether the document is of this side."""
        return (position(doc.text.encode(), "held out", self.seed) < self.share) == (self.side == "held_out")
