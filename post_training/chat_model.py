"""`chat-model`: a base model's folder -> one whose tokenizer knows chats. Stands before every recipe, once.

Four tokens come in: <|im_start|> and <|im_end|>, which end and begin turns, and <think>, </think>, which are *not* special, so
that decoding, rewards and parsers see them. Where the tokenizer has reserved tokens (Llama 3's, which SmolLM3 uses) the new
ones take their places, else they come at the end; the embedding grows only when its rows do not suffice. Of the weights only
the new tokens' rows change: they start at the mean of all others with a little noise, so that none begins as an outlier.
"""

import json
import re
from pathlib import Path
from typing import Any

from data_tools.output import whole_folder
from post_training.template import read_template
from smol_answers import END_THINK, IM_END, IM_START, THINK
from smol_config import UserError

TOKENS = {IM_START: True, IM_END: True, THINK: False, END_THINK: False}
"""Token -> special."""
RESERVED = re.compile(r"<\|reserved_special_token_\d+\|>")
NOISE = 0.1
"""Of each dimension's standard deviation over the vocabulary: enough to tell the new tokens apart."""
ROWS = 128
"""A grown embedding has a multiple of this many rows: matrix kernels want it."""


def run(hf_dir: Path, out_dir: Path, template: str = "hybrid") -> None:
    """The command. Raises UserError, leaving no OUT_DIR, for a folder that is no model or has a slow tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = read_template(template)
    if not (hf_dir / "config.json").is_file():
        raise UserError(f"{hf_dir} holds no config.json; give a folder that `python -m conversion to-hf` made")
    try:
        base = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(hf_dir, local_files_only=True, dtype="auto")
    except Exception as error:  # depends on which file is missing or damaged
        raise UserError(f"{hf_dir} does not load ({str(error).strip().splitlines()[0]}); mend the folder") from error
    tokenizer, added = with_chat_tokens(base, words)
    rows = _rows(model)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(-(-len(tokenizer) // ROWS) * ROWS, mean_resizing=False)
    with torch.no_grad():
        _fill_rows(model, added, known=min(rows, len(base)), before=rows)
    end = tokenizer.eos_token_id
    model.config.eos_token_id, model.config.pad_token_id = end, tokenizer.pad_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    # The base model's own end of text still ends an answer: a model half trained may write it.
    ends = [end, *([base.eos_token_id] if base.eos_token_id not in (None, end) else [])]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    with whole_folder(out_dir) as working:
        model.save_pretrained(working)
        tokenizer.save_pretrained(working)
    now = _rows(model)
    grown = f", embedding {rows:,} -> {now:,} rows" if now > rows else ""
    print(f"wrote {out_dir}: {', '.join(f'{token} {number}' for token, number in added.items()) or 'no new token'}{grown}")


def with_chat_tokens(base: Any, template: str) -> tuple[Any, dict[str, int]]:
    """A tokenizer with the chat tokens and template, and the ids of those that are new.

    It ends turns with <|im_end|> and pads with what ended the base model's texts. Raises UserError for a slow tokenizer, and
    for <think> as a special token, which no answer would show.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not base.is_fast:
        raise UserError("the tokenizer is not a fast one (tokenizer.json); convert it with transformers first")
    known = base.get_vocab()
    state = json.loads(base.backend_tokenizer.to_str())
    reserved = [entry for entry in state["added_tokens"] if RESERVED.fullmatch(entry["content"])]
    added: dict[str, int] = {}
    for token in TOKENS:
        if token not in known and reserved:
            entry = reserved.pop(0)
            _rename(state, entry["content"], token)
            added[token] = int(entry["id"])
    for entry in state["added_tokens"]:
        if entry["content"] in TOKENS:
            entry["special"] = TOKENS[entry["content"]]
    backend = Tokenizer.from_str(json.dumps(state))
    for token in [token for token in TOKENS if token not in known and token not in added]:
        (backend.add_special_tokens if TOKENS[token] else backend.add_tokens)([token])
        added[token] = int(backend.token_to_id(token) or 0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=base.bos_token,
        eos_token=IM_END,
        pad_token=base.eos_token or base.pad_token or IM_END,
        model_max_length=base.model_max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer, added


def _rows(model: Any) -> int:
    """Of the embedding."""
    return len(model.get_input_embeddings().weight)


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """Give an added token another text, in the list of added tokens and, where it stands there, in the vocabulary."""
    for entry in state["added_tokens"]:
        if entry["content"] == old:
            entry["content"] = new
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and old in vocabulary:
        vocabulary[new] = vocabulary.pop(old)


def _fill_rows(model: Any, added: dict[str, int], known: int, before: int) -> None:
    """Set the new tokens' rows of the embedding, and of an output head of its own, near the mean of the first `known` rows.

    A grown embedding, which had `before` rows, has more than there are tokens; those are the mean itself. transformers draws
    them anew each time.
    """
    import torch

    weights = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in weights.values():
        trained = weight[:known].float()
        mean = trained.mean(0)
        weight[before:] = mean.to(weight.dtype)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(added), weight.shape[1], generator=generator)
        for row, number in zip(mean + NOISE * trained.std(0) * noise, added.values(), strict=True):
            weight[number] = row.to(weight.dtype)
