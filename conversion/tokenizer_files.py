"""A tokenizer by folder or Hub name: its files, its special ids, and a copy of it in an export."""

import shutil
from pathlib import Path
from typing import Any

from conversion import ConversionError
from conversion.families import SpecialIds

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""What transformers may store of a tokenizer, chat templates included; patterns."""


def locate(name: str) -> Path:
    """The folder of a tokenizer: `name` itself, or the Hub's files of that name, fetched where they are not cached."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
        except Exception as error:  # a bad name, no network, no permission: each its own kind
            raise ConversionError(
                f"tokenizer {name!r} is neither a folder nor can it be fetched from the Hub ({_first(error)}); "
                f"give a folder with --tokenizer"
            ) from error
    if not files(folder):
        raise ConversionError(f"tokenizer {name!r}: {folder} holds no tokenizer files; give another folder with --tokenizer")
    return folder


def load(folder: Path, vocab_size: int, remedy: str = "give the one that the model was trained with (--tokenizer)") -> Any:
    """The tokenizer as transformers loads it; raises ConversionError when it does not, or has more ids than the embedding rows.

    `remedy` ends the error's sentence.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # depends on which file is missing or damaged
        raise ConversionError(f"the tokenizer in {folder} does not load ({_first(error)}); {remedy}") from error
    if len(tokenizer) > vocab_size:
        raise ConversionError(
            f"the tokenizer in {folder} has {len(tokenizer)} ids and the model's vocab_size is {vocab_size}; {remedy}"
        )
    return tokenizer


def special_ids(tokenizer: Any) -> SpecialIds:
    """The ids that config.json and generation_config.json name."""
    return SpecialIds(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def end_of_turn(tokenizer: Any) -> int | None:
    """The special id that the chat template puts after an assistant's words, where that is not the end-of-text id.

    None without a template, for one that ends turns otherwise, and for one that asks for more than messages.
    """
    if not tokenizer.chat_template:
        return None
    words = "The tide is out."
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": words}]
    try:
        after = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(words)[2]
    except Exception:  # whatever the template's own code does without what it asks for
        return None
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special and ids[0] != tokenizer.eos_token_id else None


def copy(folder: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files into `target`; returns their names."""
    names = files(folder)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return names


def files(folder: Path) -> list[str]:
    """Names of the tokenizer's files in `folder`, relative to it."""
    return sorted(str(path.relative_to(folder)) for pattern in FILES for path in folder.glob(pattern) if path.is_file())


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
