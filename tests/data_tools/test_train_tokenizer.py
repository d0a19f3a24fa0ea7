"""`train-tokenizer`: lossless, deterministic, exactly as many ids as asked, and loadable by transformers; its text."""

import json
from pathlib import Path

import pytest
from document_files import Tool, contents, python, write_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_tools.catalogue import CatalogueEntry, Rule
from data_tools.hub_files import Hub
from data_tools.inputs import find_inputs
from data_tools.run_config import load_data_run
from data_tools.sampling import sample_texts
from data_tools.train_tokenizer import DIGITS, SPECIAL_TOKENS, mixture_texts, train


def trained(digits: str) -> Tokenizer:
    """A tokenizer of text in which every number is frequent enough to be merged, were it not split."""
    texts = ["1234567"] * 1000 + ["words enough to give the other merges, whatever becomes of numbers"]
    return train(texts, vocab_size=280, digits=digits, special_tokens=list(SPECIAL_TOKENS))


@pytest.fixture(scope="module")
def by_digits() -> dict[str, Tokenizer]:
    return {digits: trained(digits) for digits in DIGITS}


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=150)
def test_any_text_survives_encoding_and_decoding(by_digits: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in by_digits.values():
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("digits", "pieces"),
    [("single", ["1", "2", "3", "4", "5", "6", "7"]), ("triples", ["123", "456", "7"]), ("keep", ["1234567"])],
)
def test_numbers_are_cut_as_asked(by_digits: dict[str, Tokenizer], digits: str, pieces: list[str]) -> None:
    assert by_digits[digits].encode("1234567").tokens == pieces


def test_transformers_loads_it_with_eos_padding_and_lossless_decoding(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    assert len(loaded) == 2000
    assert (loaded.eos_token, loaded.eos_token_id) == ("<|end_of_text|>", 0)
    assert (loaded.pad_token, loaded.pad_token_id) == ("<|pad|>", 1)
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    text = "def f(x) :\r\n\treturn x , [ 12 ]  # naïve 漢字 🙂 . <|im_start|>"
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert ids[-1] == 2
    assert loaded.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_start|>")


def test_two_trainings_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    inputs = [corpus / "held_out/docs", corpus / "held_out/code"]
    for name in ("a", "b"):  # each in a process of its own, where hashes are seeded anew
        assert python("-m", "data_tools", "train-tokenizer", *inputs, tmp_path / name, "--vocab-size", "800").code == 0
    assert set(contents(tmp_path / "a")) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_more_special_tokens_follow_the_built_in_ones(tool: Tool, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line of text, and a line of text\n" * 5)
    names = ["--special-token", "<think>", "--special-token", "</think>"]
    outcome = tool("train-tokenizer", text, tmp_path / "out", "--vocab-size", 270, *names)
    assert outcome.code == 0, outcome
    assert "270 ids, 6 of them special" in outcome.out
    loaded = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert loaded.get_vocab_size() == 270
    assert loaded.encode("<think></think>").ids == [4, 5]


def test_bad_input_is_refused_with_one_sentence(tool: Tool, tmp_path: Path) -> None:
    text = write_documents(tmp_path / "in" / "text.jsonl", ["a few words"])
    new = tmp_path / "new"
    before = contents(tmp_path)
    for arguments, sentence in (
        (
            (text, new, "--vocab-size", "100"),
            "--vocab-size 100 is too small for 256 bytes and 4 special tokens; give 260 or more",
        ),
        ((text, new, "--vocab-size", "4000"), "--vocab-size 4000: the text gives only"),
        ((text, new, "--special-token", "<|pad|>"), "--special-token '<|pad|>' is empty or stands twice"),
        ((text, new, "--special-token", ""), "--special-token '' is empty"),
        ((text, new, "--digits", "pairs"), "invalid choice: 'pairs'"),
        ((text, new, "--text-key", "body"), "no key 'body'; keys there: 'text'; name the text's key with --text-key"),
        ((tmp_path / "nowhere", new), "nowhere does not exist; give files or folders"),
        ((text, tmp_path / "in"), "is not empty; name a new folder"),
    ):
        outcome = tool("train-tokenizer", *arguments)
        assert (outcome.code, sentence in outcome.err) == (2, True), (arguments, outcome)
        assert not new.exists()
    assert contents(tmp_path) == before


def mixture_config(folder: Path, stages: list[dict[str, object]], datasets: list[str]) -> Path:
    """The smallest configuration with these stages."""
    data = {
        "tokenizer": "to/be-trained",
        "sequence_length": 64,
        "datasets": {name: f"${{NOWHERE_SET}}/{name}" for name in datasets},
        "stages": stages,
    }
    (folder / "config.yaml").write_text(json.dumps({"data": data, "train": {"global_batch_size": 4}}))
    return folder / "config.yaml"


STAGES: list[dict[str, object]] = [
    {"name": "one", "steps": 300, "weights": {"code": 3, "docs": 1, "unused": 0}},
    {"name": "two", "steps": 100, "weights": {"docs": 0.5, "empty": 0}},
]  # code: 300 x 3/4 of 400 steps = 0.5625, docs: 0.4375


def test_a_configs_datasets_are_taken_in_the_proportions_of_the_run(corpus: Path, tmp_path: Path) -> None:
    run = load_data_run(mixture_config(tmp_path, STAGES, ["code", "docs", "unused", "empty"]), keep_unset=True)
    parts = mixture_texts(run, None, corpus, "text")
    assert {name: share for name, (share, _) in parts.items()} == {"code": 0.5625, "docs": 0.4375}
    files = [Path(file) for _, text in parts.values() for file in text.inputs.files]
    assert {file.parent for file in files} == {corpus / "code", corpus / "docs"}


def test_the_tokenizer_of_a_config_is_trained_on_that_share_of_each_text(tool: Tool, corpus: Path, tmp_path: Path) -> None:
    config = mixture_config(tmp_path, STAGES, ["code", "docs", "unused", "empty"])
    common = ("--config", config, "--text-root", corpus, "--vocab-size", 500, "--megabytes", 1)
    outcome = tool("train-tokenizer", *common, tmp_path / "out")
    assert outcome.code == 0, outcome
    assert [line.split() for line in outcome.err.splitlines() if "bytes" in line] == [
        ["code", "56.25%", "562,500", "bytes"],
        ["docs", "43.75%", "437,500", "bytes"],
    ]
    assert Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).get_vocab_size() == 500
    assert tool("train-tokenizer", *common, tmp_path / "again").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert tool("train-tokenizer", *common, tmp_path / "other", "--seed", 1).code == 0
    assert contents(tmp_path / "out") != contents(tmp_path / "other")


def test_a_dataset_with_less_text_than_its_share_gives_all_it_has(tool: Tool, tmp_path: Path) -> None:
    write_documents(tmp_path / "text" / "a" / "x.jsonl", ["a line of text, and a line of text"] * 10_000)
    write_documents(tmp_path / "text" / "b" / "x.jsonl", ["a few other words, and a few"] * 10)
    config = mixture_config(tmp_path, [{"name": "s", "steps": 10, "weights": {"a": 1, "b": 1}}], ["a", "b"])
    common = ("--config", config, "--text-root", tmp_path / "text", "--vocab-size", 265)
    outcome = tool("train-tokenizer", *common, "--megabytes", 1, tmp_path / "out")
    assert outcome.code == 0, outcome
    assert "a  50.00%         340,000 bytes, all there is of the 500,000 asked for" in outcome.err
    assert "b  50.00%             280 bytes, all there is of the 500,000 asked for" in outcome.err


def test_text_that_was_fetched_is_read_as_the_catalogue_says(tool: Tool, tmp_path: Path) -> None:
    good = "good text, good text " * 20
    rows = [{"body": good, "score": 3}, {"body": "bad words " * 50, "score": 1}] * 50
    (tmp_path / "mirror/org/set/data").mkdir(parents=True)
    for name in ("a", "b"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"mirror/org/set/data/{name}.jsonl").write_text(lines)
    rules = [Rule(column="score", at_least=2)]
    found = CatalogueEntry(group="code", repository="org/set", files=["data/a.*"], text_key="body", filter=rules)
    catalogue = {"datasets": {"set": found.model_dump(exclude_none=True)}}
    (tmp_path / "catalogue.yaml").write_text(json.dumps(catalogue))
    hub = Hub(mirror=tmp_path / "mirror")
    hub.fetch(hub.listing(found, tmp_path / "text/set"), tmp_path / "text/set")
    config = mixture_config(tmp_path, [{"name": "s", "steps": 10, "weights": {"set": 1}}], ["set"])
    common = ("--config", config, "--text-root", tmp_path / "text", "--vocab-size", 265)
    outcome = tool("train-tokenizer", *common, tmp_path / "out")
    assert outcome.code == 0, outcome
    assert f"{50 * len(good):,} bytes, all there is" in outcome.err  # of one file, and its good half


def test_a_sample_of_the_inputs_is_enough_if_asked_for(tool: Tool, corpus: Path, tmp_path: Path) -> None:
    inputs = find_inputs([corpus / "code"], "text")
    assert tool("train-tokenizer", corpus / "code", tmp_path / "out", "--vocab-size", 500, "--megabytes", 1).code == 0
    expected = train(sample_texts(inputs, 1_000_000), 500, "single", list(SPECIAL_TOKENS))
    assert Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).get_vocab() == expected.get_vocab()


def test_a_text_that_is_not_clear_or_not_there_is_refused(tool: Tool, corpus: Path, tmp_path: Path) -> None:
    config = mixture_config(tmp_path, [{"name": "s", "steps": 1, "weights": {"docs": 1, "a": 1, "b": 2}}], ["docs", "a", "b"])
    unclear = "give either INPUTs, or --config C.yaml with --text-root DIR"
    new = tmp_path / "new"
    before = contents(tmp_path)
    for arguments, sentence in (
        ((new,), unclear),
        ((new, "--config", config), unclear),
        ((new, "--text-root", corpus), unclear),
        ((corpus / "docs", new, "--config", config, "--text-root", corpus), unclear),
        ((new, "--config", config, "--text-root", corpus), f"--text-root {corpus} has no text of a, b; fetch it with prepare"),
        (("--config", tmp_path / "no.yaml", "--text-root", corpus, new), "no.yaml cannot be read"),
    ):
        outcome = tool("train-tokenizer", *arguments)
        assert (outcome.code, sentence in outcome.err) == (2, True), (arguments, outcome)
    assert contents(tmp_path) == before
