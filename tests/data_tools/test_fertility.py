"""`fertility`: figures that can be counted by hand, words in scripts with and without spaces, results as files."""

import csv
from pathlib import Path

import pytest
import regex
from document_files import Tool, contents, write_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_tools.fertility import PIECE, WORD, Count, measure, pieces
from data_tools.train_tokenizer import SPECIAL_TOKENS, save, train

# Article 1 of the Universal Declaration of Human Rights.
DECLARATION = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны "
    "поступать в отношении друг друга в духе братства.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}


def words(text: str) -> list[str]:
    return regex.findall(WORD, text, regex.VERSION1)


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No merges: every byte is a token, so that all figures can be counted by hand."""
    return saved(tmp_path_factory.mktemp("bytes"), [], 260)


@pytest.fixture(scope="module")
def english_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merges all of the English text's words."""
    return saved(tmp_path_factory.mktemp("english"), [DECLARATION["en"]] * 2, 360)


def saved(folder: Path, texts: list[str], vocab_size: int) -> Path:
    save(train(texts, vocab_size, "single", list(SPECIAL_TOKENS)), folder, list(SPECIAL_TOKENS))
    return folder


def count(tokenizer: Path, text: str, words_alone: bool = False) -> Count:
    found = Count("text", "tokenizer", 0)
    measure([text], [(Tokenizer.from_file(str(tokenizer / "tokenizer.json")), found)], words_alone)
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 3,14 — don’t!", ["It's", "3", "14", "don’t"]),
        ("e-mail snake_case(x1)", ["e", "mail", "snake", "case", "x1"]),
        ("naïve cafe\u0301", ["naïve", "cafe\u0301"]),
        (DECLARATION["hi"][:16], ["सभी", "मनुष्यों", "को"]),
        ("자유로운 사람", ["자유로운", "사람"]),
        ("人人free自由", ["人", "人", "free", "自", "由"]),
        ("スーパー", ["ス", "ー", "パ", "ー"]),
        ("กิน น้ำ", ["กิ", "น", "น้", "ำ"]),
        ("--- … 。", []),
    ],
)
def test_words_are_runs_of_letters_and_single_characters_where_a_script_has_no_spaces(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_figures_of_a_tokenizer_of_bytes_are_the_bytes_of_the_words(byte_tokenizer: Path) -> None:
    found = count(byte_tokenizer, "a bcd é, 漢")  # 13 bytes, words of 1, 3, 2 and 3 bytes
    assert (found.bytes, found.tokens, found.words, found.word_tokens, found.continued) == (13, 13, 4, 9, 3)
    assert (found.fertility, found.continued_words, found.bytes_per_token) == (2.25, 0.75, 1.0)


def test_a_word_is_counted_where_it_stands_or_alone(english_tokenizer: Path) -> None:
    text = " born free"
    assert Tokenizer.from_file(str(english_tokenizer / "tokenizer.json")).encode(text).tokens == ["Ġborn", "Ġfree"]
    assert count(english_tokenizer, text).fertility == 1.0
    assert count(english_tokenizer, text, words_alone=True).fertility > 1.0  # it knows "born" after a space only


@pytest.mark.parametrize("language", DECLARATION)
def test_counts_are_those_of_a_plain_loop_over_the_tokens(english_tokenizer: Path, language: str) -> None:
    text = DECLARATION[language]
    offsets = Tokenizer.from_file(str(english_tokenizer / "tokenizer.json")).encode(text).offsets
    per_word = [
        sum(start < match.end() and end > match.start() for start, end in offsets)
        for match in regex.finditer(WORD, text, regex.VERSION1)
    ]
    found = count(english_tokenizer, text)
    assert (found.tokens, found.words, found.word_tokens) == (len(offsets), len(per_word), sum(per_word))
    assert found.continued == sum(number > 1 for number in per_word)


def test_truncation_padding_and_special_tokens_play_no_part(english_tokenizer: Path, tmp_path: Path) -> None:
    text = DECLARATION["en"] + " <|im_start|>"
    plain = count(english_tokenizer, text)
    loaded = Tokenizer.from_file(str(english_tokenizer / "tokenizer.json"))
    loaded.enable_truncation(8)
    loaded.enable_padding(pad_id=1, pad_token="<|pad|>", length=1000)
    save(loaded, tmp_path, list(SPECIAL_TOKENS))
    assert count(tmp_path, text) == plain
    assert plain.tokens > 40


@given(text=st.text(alphabet="ab \né漢", max_size=200), size=st.integers(2, 20))
@settings(max_examples=100)
def test_pieces_are_short_and_give_the_text_back(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_tools.fertility.PIECE", size)
        cut = list(pieces([text]))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= size for piece in cut)


def test_long_documents_are_cut_after_a_line_end() -> None:
    text = "a line of text\n" * (PIECE // 5)
    cut = list(pieces([text, "short"]))
    assert len(cut) > 3
    assert all(piece.endswith("\n") for piece in cut[:-1])


def test_tables_csv_and_picture(tool: Tool, byte_tokenizer: Path, english_tokenizer: Path, tmp_path: Path) -> None:
    texts = [f"{name}={write_documents(tmp_path / f'{name}.jsonl', [text])}" for name, text in DECLARATION.items()]
    names = [f"bytes={byte_tokenizer}", f"english={english_tokenizer}"]
    outcome = tool("fertility", "--tokenizer", *names, "--text", *texts, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert set(contents(tmp_path / "out")) == {"fertility.csv", "fertility.md", "fertility.png"}
    rows = list(csv.DictReader((tmp_path / "out" / "fertility.csv").open(encoding="utf8")))
    assert [(row["text"], row["tokenizer"]) for row in rows] == [(t, n) for t in DECLARATION for n in ("bytes", "english")]
    by_pair = {(row["text"], row["tokenizer"]): row for row in rows}
    for text in DECLARATION:
        assert float(by_pair[text, "bytes"]["bytes_per_token"]) == 1.0
        assert int(by_pair[text, "bytes"]["bytes"]) == len(DECLARATION[text].encode())
    assert float(by_pair["en", "english"]["fertility"]) < 1.2 < float(by_pair["fr", "english"]["fertility"])
    assert by_pair["ja", "bytes"]["fertility"] == "3.000000"  # every kana and kanji is three bytes
    assert (by_pair["en", "bytes"]["vocab_size"], by_pair["en", "english"]["vocab_size"]) == ("260", "360")
    line = next(line for line in outcome.out.splitlines() if line.startswith("ja"))
    assert line.split()[1] == "3.000"
    for title in ("fertility:", "continued words:", "bytes per token"):
        assert title in outcome.out
        assert f"**{title}" in (tmp_path / "out" / "fertility.md").read_text("utf8")
    assert (tmp_path / "out" / "fertility.png").read_bytes().startswith(b"\x89PNG")


def test_a_large_text_is_sampled(tool: Tool, byte_tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = ("--text", f"code={corpus / 'code'}", "--megabytes", 1, "--output", tmp_path / "out")
    outcome = tool("fertility", "--tokenizer", byte_tokenizer, *arguments)
    assert outcome.code == 0, outcome
    (row,) = csv.DictReader((tmp_path / "out" / "fertility.csv").open(encoding="utf8"))
    assert 1_000_000 - 4 < int(row["bytes"]) <= 1_000_000


def test_a_bare_tokenizer_file_is_enough(tool: Tool, byte_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/tokenizer.json").write_bytes((byte_tokenizer / "tokenizer.json").read_bytes())
    text = write_documents(tmp_path / "text.jsonl", ["a few words"])
    assert tool("fertility", "--tokenizer", tmp_path / "bare", "--text", f"a={text}").code == 0


def test_bad_input_is_refused_with_one_sentence(tool: Tool, byte_tokenizer: Path, tmp_path: Path) -> None:
    text = write_documents(tmp_path / "text.jsonl", ["words"])
    signs = write_documents(tmp_path / "signs.jsonl", ["--- ..."])
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("mine")
    before = contents(tmp_path)
    new = ("--output", tmp_path / "new")
    for tokenizers, texts, more, sentence in (
        ([byte_tokenizer], [text], new, "is not of the form NAME=PATH; give a name and a path"),
        ([byte_tokenizer], [f"a={text}", f"a={text}"], new, "--text: the name 'a' stands twice; give each its own"),
        ([byte_tokenizer] * 2, [f"a={text}"], new, "stands twice; give each its own, as NAME=PATH"),
        ([byte_tokenizer], [f"a={tmp_path / 'nowhere'}"], new, "nowhere does not exist; give files or folders"),
        ([tmp_path], [f"a={text}"], new, "the folder holds no tokenizer.json"),
        ([byte_tokenizer], [f"a={signs}"], new, "--text a: no words in its sample of 7 bytes; give a text that has some"),
        ([byte_tokenizer], [f"a={text}"], ("--output", used), "is not empty; name a new folder"),
        ([byte_tokenizer], [f"a={text}"], ("--megabytes", "0"), "0 is too small; give 1 or more"),
    ):
        outcome = tool("fertility", "--tokenizer", *tokenizers, "--text", *texts, *more)
        assert (outcome.code, sentence in outcome.err) == (2, True), (sentence, outcome)
    assert contents(tmp_path) == before
