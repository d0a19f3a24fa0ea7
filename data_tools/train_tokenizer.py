"""`train-tokenizer`: a byte-level BPE tokenizer from text, as a Hugging Face folder.

Second step of the flow: text -> **tokenizer** -> token shards -> smol_data -> trainer. Every text survives encoding and
decoding unchanged, since all 256 bytes are in the vocabulary and nothing is normalised. Digits are split before the merges
are learned, singly or in threes from the left, so that numbers are cut the same way in every context. Training is
deterministic: the same texts and settings give the same bytes.

The text is all of the INPUTs, or with --config that of the run's datasets, DIR/NAME under --text-root, in the proportions in
which the run reads them: a dataset's share of the bytes is its share of the run's tokens over all stages.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.catalogue import Catalogue, find_catalogue, load_catalogue
from data_tools.dataset_text import DatasetText, open_text
from data_tools.inputs import ALL_ENDINGS, Inputs, find_inputs
from data_tools.output import check_new_folder, whole_folder
from data_tools.run_config import DataRun, load_data_run
from data_tools.sampling import sample_texts
from smol_config import UserError
from smol_console import Progress, add_command, whole_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS, PAD = "<|end_of_text|>", "<|pad|>"
SPECIAL_TOKENS = (EOS, PAD, "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, 3; the last two frame chat messages
DIGITS = ("single", "triples", "keep")
BYTES = 256
DEFAULT_MEGABYTES = 500  # of text for a config's datasets: merges of 128k ids hardly change beyond


def add_parser(subparsers: Any) -> None:
    """Add `train-tokenizer` to the command line."""
    parser = add_command(
        subparsers,
        "train-tokenizer",
        "Train a byte-level BPE tokenizer and save it as a Hugging Face folder.",
        "python -m data_tools train-tokenizer runs/corpus/code runs/corpus/docs runs/tokenizer --vocab-size 4096",
    )
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help=f"files or folders of {ALL_ENDINGS}")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new folder for tokenizer.json and its settings")
    parser.add_argument(
        "--config", type=Path, metavar="C.yaml", help="instead of INPUTs: the datasets of this run, in its mixture"
    )
    parser.add_argument(
        "--text-root", type=Path, metavar="DIR", help="with --config: the text of dataset NAME lies in DIR/NAME"
    )
    parser.add_argument("--catalogue", type=Path, metavar="FILE", help="default: catalogue.yaml beside the configuration")
    parser.add_argument(
        "--megabytes",
        type=whole_number(1),
        metavar="N",
        help=f"train on a sample of this much text (default: all of the INPUTs; {DEFAULT_MEGABYTES} with --config)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the sample (default 0)")
    parser.add_argument("--vocab-size", type=whole_number(1), default=4096, metavar="N", help="ids in all (default 4096)")
    parser.add_argument(
        "--digits", choices=DIGITS, default="single", help="how numbers are cut before merging (default single)"
    )
    parser.add_argument(
        "--special-token",
        action="append",
        default=[],
        metavar="TOKEN",
        help=f"one more special token, after {', '.join(SPECIAL_TOKENS)}; may be given several times",
    )
    parser.add_argument(
        "--text-key", default="text", metavar="KEY", help="key or column of the text, or several as a+b (default text)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on unusable inputs or settings."""
    special_tokens = [*SPECIAL_TOKENS, *options.special_token]
    check_settings(options.vocab_size, special_tokens)
    check_new_folder(options.out_dir)
    tokenizer = train(_texts(options), options.vocab_size, options.digits, special_tokens)
    with whole_folder(options.out_dir) as folder:
        save(tokenizer, folder, special_tokens)
    print(f"{tokenizer.get_vocab_size():,} ids, {len(special_tokens)} of them special")
    print(f"written: {options.out_dir}")


def check_settings(vocab_size: int, special_tokens: list[str]) -> None:
    """Raise UserError for a vocabulary that cannot hold the bytes and special tokens, or a special token that is no good."""
    if bad := sorted({token for token in special_tokens if not token.strip() or special_tokens.count(token) > 1}):
        raise UserError(
            f"--special-token {bad[0]!r} is empty or stands twice; the built-in ones are {', '.join(SPECIAL_TOKENS)}"
        )
    if vocab_size < (least := BYTES + len(special_tokens)):
        need = f"{BYTES} bytes and {len(special_tokens)} special tokens"
        raise UserError(f"--vocab-size {vocab_size} is too small for {need}; give {least} or more")


def train(texts: Iterable[str], vocab_size: int, digits: str, special_tokens: list[str]) -> "Tokenizer":
    """A tokenizer of exactly `vocab_size` ids; raises UserError when the text has too few repeated pairs for it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    splits: list[Any] = []
    if digits == "single":
        splits.append(pre_tokenizers.Digits(individual_digits=True))
    elif digits == "triples":
        splits.append(pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), behavior="isolated"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise UserError(f"--vocab-size {vocab_size}: the text gives only {found} ids; lower the size or add more text")
    return tokenizer


def save(tokenizer: "Tokenizer", folder: Path, special_tokens: list[str]) -> None:
    """Write the three files that transformers.AutoTokenizer reads, EOS and padding set.

    They are written here rather than by transformers, so that the bytes do not change with its version.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": EOS, "pad_token": PAD}
    more = [token for token in special_tokens if token not in named.values()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "additional_special_tokens": more,
        "clean_up_tokenization_spaces": False,  # else decoding would drop spaces before punctuation
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {**named, "additional_special_tokens": more})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


# --- the text to train on ------------------------------------------------------------------------------------------------


def _texts(options: argparse.Namespace) -> Iterator[str]:
    """The documents that the command line asks for; all inputs are found before the first is read."""
    if bool(options.inputs) == bool(options.config) or bool(options.config) != bool(options.text_root):
        raise UserError("the text to train on is not clear: give either INPUTs, or --config C.yaml with --text-root DIR")
    if options.config:
        run = load_data_run(options.config, keep_unset=True)
        file = options.catalogue or find_catalogue(options.config)
        parts = mixture_texts(run, load_catalogue(file) if file else None, options.text_root, options.text_key)
        return _mixture(parts, (options.megabytes or DEFAULT_MEGABYTES) * 10**6, options.seed)
    inputs = find_inputs(options.inputs, options.text_key)
    print(f"training on {len(inputs.files):,} files, {inputs.bytes:,} bytes", file=sys.stderr)
    return sample_texts(inputs, options.megabytes * 10**6, options.seed) if options.megabytes else _counted(inputs)


def mixture_texts(
    run: DataRun, catalogue: Catalogue | None, text_root: Path, text_key: str
) -> dict[str, tuple[float, DatasetText]]:
    """Share of the run's tokens and text of each dataset that the run reads; raises UserError naming all without text.

    `text_key` is that of datasets for which the catalogue names none.
    """
    tokens = run.tokens_by_dataset()
    if missing := [name for name in tokens if not (text_root / name).exists()]:
        raise UserError(
            f"--text-root {text_root} has no text of {', '.join(missing)}; fetch it with prepare, or put it there by that name"
        )
    total = sum(tokens.values())
    return {
        name: (count / total, open_text(text_root / name, catalogue.get(name) if catalogue else None, text_key))
        for name, count in tokens.items()
    }


def _mixture(parts: dict[str, tuple[float, DatasetText]], budget: int, seed: int) -> Iterator[str]:
    """A sample of each dataset by its share of the budget; says what was taken, and where a dataset has less."""
    wide = max(map(len, parts))
    for name, (share, source) in sorted(parts.items(), key=lambda part: -part[1][0]):
        asked, taken = max(1, round(share * budget)), 0
        for text in sample_texts(source.inputs, asked, seed, source.keeps):
            taken += len(text.encode())
            yield text
        # The last document may end inside a character of up to 4 bytes.
        less = "" if taken > asked - 4 else f", all there is of the {asked:,} asked for"
        print(f"{name:<{wide}} {share:>7.2%} {taken:>15,} bytes{less}", file=sys.stderr)


def _counted(inputs: Inputs) -> Iterator[str]:
    with Progress("reading", "documents") as progress:
        for text in inputs.texts():
            yield text
            progress.advance()
