"""Where the datasets of a configuration come from: the catalogue file beside it, typed.

Read by `mixture` (groups, and tokens of datasets that are not here yet) and by `prepare` (what to download, filter and
tokenise). configs/smollm3/catalogue.yaml is the one of SmolLM3's five mixtures. A fact that is not known is null there,
with a note; nothing is guessed.

    datasets:
      fineweb-edu:                                  # the name in data.datasets
        repository: HuggingFaceFW/fineweb-edu
        files: ["data/*/*.parquet"]
        text_key: text
        group: English web
        filter: [{column: int_score, at_least: 3}]  # rules, all of which must hold
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from smol_config import ConfigError, Section, load_mapping, nearest, parse

Group = Literal["English web", "multilingual", "code", "math", "reasoning"]
"""What a dataset is counted as in the tables of a mixture."""

Scalar = str | int | float | bool


class Rule(Section):
    """A condition on one column of a document: `{column: language, equals: Python}`. One comparison each."""

    column: str
    equals: Scalar | None = None
    at_least: int | float | None = None
    one_of: list[Scalar] | None = None

    def problems(self) -> list[str]:
        given = [name for name in ("equals", "at_least", "one_of") if getattr(self, name) is not None]
        return [] if len(given) == 1 else [f"column {self.column!r} has {given}; give one of equals, at_least, one_of"]

    def holds(self, document: dict[str, Any]) -> bool:
        """Whether a document, as a mapping of its columns, is kept; one that lacks the column is not."""
        value = document.get(self.column)
        if value is None:
            return False
        if self.at_least is not None:
            return isinstance(value, int | float) and value >= self.at_least
        return value == self.equals if self.one_of is None else value in self.one_of


class CatalogueEntry(Section):
    """One published dataset."""

    group: Group
    published: bool = True
    """False: the content is not published or not even documented; the note says what is known."""
    repository: str | None = None
    """Dataset repository of the Hugging Face Hub, org/name."""
    subset: str | None = None
    """Its name for the subset (the `config` of datasets.load_dataset); null when there is only one."""
    revision: str = "main"
    """Commit, or `main` where none is known that the run was made with."""
    files: list[str] = Field(default_factory=list)
    """Glob patterns of the files inside the repository; `**` stands for folders at any depth."""
    text_key: str | None = None
    """Column or key of the text, or several to be joined by a new line, `problem+solution`; null: the text has to be
    assembled first, as the note says."""
    filter: list[Rule] = Field(default_factory=list)
    """Rules that a document must meet, all of them."""
    licence: str | None = None
    """As its card says; null: not known."""
    tokens: PositiveInt | None = None
    """Published size of the subset in tokens; the source says by which tokenizer."""
    gigabytes: NonNegativeFloat | None = None
    """Size of the download, 10**9 bytes."""
    also: list[str] = Field(default_factory=list)
    """Other names of the same data in configurations."""
    note: str | None = None
    source: list[str] = Field(default_factory=list)
    """Where these facts were read."""

    @property
    def can_be_prepared(self) -> bool:
        """Whether the files can be downloaded and tokenised as they are."""
        return self.published and None not in (self.repository, self.text_key) and bool(self.files)

    def keeps(self, document: dict[str, Any]) -> bool:
        """Whether a document, as a mapping of its columns, passes the filter."""
        return all(rule.holds(document) for rule in self.filter)

    def problems(self) -> list[str]:
        found = []
        if not self.published and not self.note:
            found.append("published=false without a note; say what is known")
        if self.published and self.repository is None:
            found.append("published=true without a repository; name it or set published=false")
        if self.published and self.text_key is None and not self.note:
            found.append("text_key=null without a note; say how the text is assembled")
        return found


class Catalogue(Section):
    """All entries, by the dataset's name in data.datasets."""

    datasets: dict[str, CatalogueEntry]

    def problems(self) -> list[str]:
        names = [name for key, entry in self.datasets.items() for name in (key, *entry.also)]
        twice = sorted({name for name in names if names.count(name) > 1})
        return [f"datasets: {twice} stand more than once, counting the names under also; keep one each"] if twice else []

    def get(self, name: str) -> CatalogueEntry | None:
        """The entry of a dataset by its name or one of its other names; None when there is none."""
        key = self.main_name(name)
        return self.datasets[key] if key is not None else None

    def entry(self, name: str) -> CatalogueEntry:
        """As `get`; raises ConfigError, naming the near ones, when there is none."""
        if (found := self.get(name)) is None:
            known = [known for key, entry in self.datasets.items() for known in (key, *entry.also)]
            raise ConfigError(f"dataset {name!r} is not in the catalogue; {nearest(name, known)}")
        return found

    def main_name(self, name: str) -> str | None:
        """The key under which a dataset or one of its other names stands; two names of one key are the same data."""
        if name in self.datasets:
            return name
        return next((key for key, entry in self.datasets.items() if name in entry.also), None)


def load_catalogue(path: str | Path) -> Catalogue:
    """Read a catalogue file; raises ConfigError listing every fault at once."""
    return parse(Catalogue, load_mapping(path, keep_unset=True), source=str(path))


def find_catalogue(config: str | Path) -> Path | None:
    """The `catalogue.yaml` beside a configuration file; None when there is none."""
    path = Path(config).parent / "catalogue.yaml"
    return path if path.is_file() else None
