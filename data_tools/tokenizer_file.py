"""A tokenizer as the shards need it: its tokenizer.json, hash, EOS and vocabulary, from a folder or from the Hub.

Used by `tokenize`, `prepare` and `fertility`. The files are read directly, which takes milliseconds; transformers is asked only
when no file names the EOS token (old repositories leave it to the tokenizer's class).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smol_config import UserError
from smol_data.manifest import sha256_of_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizerFile:
    """Everything that decides the ids of a text."""

    name: str
    """Folder or Hub name as given."""
    file: Path
    """Its tokenizer.json."""
    sha256: str
    eos_token: str
    eos_id: int
    vocab_size: int
    """Ids are below this; added tokens count."""

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """The smallest type that holds every id."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"


def open_tokenizer(name: str) -> TokenizerFile:
    """The tokenizer of a folder or a Hub name (fetched, or from the cache when HF_HUB_OFFLINE is set).

    Raises UserError when there is none, when its tokenizer.json is missing or damaged, or when it has no EOS token.
    """
    file, settings = _files(name)
    tokenizer = _load(name, file)
    eos = next((text for part in settings if (text := _token_text(part.get("eos_token")))), None) or _eos_of_class(name)
    if eos is None:
        raise UserError(
            f"--tokenizer {name} names no EOS token, so documents could not be told apart; set eos_token in its files"
        )
    eos_id = tokenizer.token_to_id(eos)
    if eos_id is None:
        raise UserError(f"--tokenizer {name}: its EOS token {eos!r} is not in its vocabulary; set eos_token to a token that is")
    # Ids need not be without gaps, and tokenizer_config.json may add tokens that tokenizer.json lacks.
    declared = [int(key) for part in settings for key in part.get("added_tokens_decoder", {})]
    vocab_size = 1 + max([*tokenizer.get_vocab(with_added_tokens=True).values(), *declared])
    return TokenizerFile(name, file, sha256_of_file(file), eos, eos_id, vocab_size)


def load_tokenizer(name: str) -> "Tokenizer":
    """The tokenizer alone, for uses that need no EOS; raises UserError as `open_tokenizer`."""
    return _load(name, _files(name)[0])


def _load(name: str, file: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(f"--tokenizer {name}: its tokenizer.json is damaged ({error}); fetch or train it again") from error


def _files(name: str) -> tuple[Path, list[dict[str, Any]]]:
    """tokenizer.json's path and the mappings of the small files beside it."""
    folder = Path(name)
    extras = ("tokenizer_config.json", "special_tokens_map.json")
    if folder.is_dir():
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"--tokenizer {name}: the folder holds no tokenizer.json; make one with train-tokenizer or fetch it"
            )
        return folder / "tokenizer.json", [_mapping(folder / extra) for extra in extras if (folder / extra).is_file()]
    if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(
            f"--tokenizer {name} is not a folder; give a folder with a tokenizer.json, or a Hub name such as org/model"
        )
    file = _from_hub(name, "tokenizer.json")
    if file is None:
        raise UserError(f"--tokenizer {name}: neither a folder here nor a Hub repository with a tokenizer.json within reach")
    return file, [_mapping(path) for extra in extras if (path := _from_hub(name, extra))]


def _from_hub(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception:  # no such repository, no such file, no network, offline and not in the cache: all mean the same here
        return None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise UserError(f"tokenizer file {path} is not valid JSON ({error}); fetch or train the tokenizer again") from error
    return value if isinstance(value, dict) else {}


def _token_text(token: Any) -> str | None:
    """A token is written as its text or as a mapping with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _eos_of_class(name: str) -> str | None:
    from transformers import AutoTokenizer

    try:
        return _token_text(AutoTokenizer.from_pretrained(name).eos_token)
    except Exception:  # a bare tokenizer.json without a class: then there is no EOS to be found
        return None
