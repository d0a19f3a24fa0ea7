"""datatrove's quality filters by name, from a YAML file: what `tokenize --filters FILE` puts between reader and tokenizer.

    - GopherQualityFilter: {min_doc_words: 50}      # a filter with its arguments, as datatrove's class takes them
    - C4QualityFilter: {filter_no_terminal_punct: false}
    - FineWebQualityFilter                          # or its name alone

They run in this order, and every document that one drops is counted under its name and reason. Where a filter mends the text
(C4QualityFilter takes lines away), the mended text is tokenised.
"""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from smol_config import Section, UserError, nearest

_COLUMNS = {"URLFilter": ("url",)}
_UNFIT = ("BaseFilter", "LambdaFilter")  # the first does nothing; the second takes code, which no YAML holds


class FilterSetting(Section):
    """One filter of the file."""

    name: str
    arguments: dict[str, Any]

    def build(self) -> Any:
        """A new datatrove step of it."""
        return _classes()[self.name](**self.arguments)


def load_filters(path: Path) -> tuple[FilterSetting, ...]:
    """The filters of a YAML file, each tried on a line of text.

    Raises UserError for a file that holds no such list, an unknown filter or argument, and a package that is missing.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf8"))
    except OSError as error:
        raise UserError(f"--filters {path} cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--filters {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"--filters {path} holds no list; write a line a filter, such as - GopherQualityFilter: {{min_doc_words: 50}}"
        )
    settings = tuple(_setting(entry, path) for entry in entries)
    for setting in settings:
        _try(setting, path)
    return settings


def columns_of(filters: Iterable[FilterSetting]) -> tuple[str, ...]:
    """The metadata that filters look at, which the reader has to keep."""
    return tuple(dict.fromkeys(column for setting in filters for column in _COLUMNS.get(setting.name, ())))


def _classes() -> dict[str, Any]:
    from datatrove.pipeline import filters
    from datatrove.pipeline.filters.base_filter import BaseFilter

    named = {name: value for name, value in vars(filters).items() if inspect.isclass(value) and issubclass(value, BaseFilter)}
    return {name: value for name, value in named.items() if name not in _UNFIT}


def _setting(entry: Any, path: Path) -> FilterSetting:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(
            f"--filters {path}: {entry!r} is neither a filter's name nor `name: {{argument: value}}`; write one of them"
        )
    ((name, arguments),) = entry.items()
    if name not in (known := _classes()):
        raise UserError(f"--filters {path}: no filter {name!r} in datatrove; {nearest(str(name), known)}")
    if not isinstance(arguments, dict | None):
        raise UserError(f"--filters {path}: {name} has {arguments!r} where its arguments should stand as `argument: value`")
    accepted = set(inspect.signature(known[name].__init__).parameters) - {"self", "exclusion_writer"}
    for argument in arguments or {}:
        if argument not in accepted:
            raise UserError(f"--filters {path}: {name} has no argument {argument!r}; {nearest(str(argument), accepted)}")
    return FilterSetting(name=name, arguments=arguments or {})


def _try(setting: FilterSetting, path: Path) -> None:
    """Run a filter once: what it needs is imported and fetched at its first document, which would be late."""
    from datatrove.data import Document

    try:
        setting.build().filter(Document(text="A line of text.", id="", metadata={"url": "https://example.org/"}))
    except ImportError as error:
        raise UserError(f"--filters {path}: {setting.name} needs a package that is not installed: {error}") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise UserError(
            f"--filters {path}: {setting.name} with {setting.arguments} fails ({cause}); mend its arguments"
        ) from error
