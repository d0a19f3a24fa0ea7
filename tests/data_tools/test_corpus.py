"""`corpus`: what it takes from a library, how it holds documents out, and that its folder appears whole or not at all."""

import sysconfig
from pathlib import Path

import pytest
from document_files import Tool, contents, read_documents

from data_tools import corpus as corpus_command
from data_tools.corpus import DATASETS, LEAST_HELD_OUT, Document, docstrings, split

LIBRARY = Path(sysconfig.get_path("stdlib"))
OTHER_LIBRARIES = sorted(path.parent for path in Path("/usr/lib").glob("python3.*/os.py"))


def documents_of(corpus: Path, part: str) -> dict[str, str]:
    return {document["id"]: document["text"] for document in read_documents(corpus / part)}


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def small_library(folder: Path, modules: int = 12) -> Path:
    """A folder laid out like a standard library."""
    for index in range(modules):
        (folder / "package").mkdir(parents=True, exist_ok=True)
        (folder / "package" / f"module_{index}.py").write_text(f'"""Module number {index}."""\nvalue = {index}\n')
    return folder


def test_code_is_the_sources_and_docs_are_topics_docstrings_and_prose_files(corpus: Path) -> None:
    code = documents_of(corpus, "code") | documents_of(corpus, "held_out/code")
    docs = documents_of(corpus, "docs") | documents_of(corpus, "held_out/docs")
    assert code["json/decoder.py"] == (LIBRARY / "json/decoder.py").read_text("utf8")
    assert "json.decoder.JSONDecoder.raw_decode\n\nDecode a JSON document" in docs["docstrings/json.decoder"]
    assert docs["topics/assert"].startswith('The "assert" statement')
    assert any(name.startswith("prose/") for name in docs)
    assert "pydoc_data/topics.py" not in code  # its texts are `docs`; as code they would leak held-out topics


def test_tests_and_installed_packages_are_left_out(corpus: Path) -> None:
    folders = {part for name in documents_of(corpus, "code") for part in name.split("/")[:-1]}
    assert folders
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_held_out_documents_are_several_and_share_no_text_with_training(corpus: Path, dataset: str) -> None:
    training, held_out = documents_of(corpus, dataset), documents_of(corpus, f"held_out/{dataset}")
    assert len(held_out) >= LEAST_HELD_OUT
    assert not set(training) & set(held_out)
    assert not set(training.values()) & set(held_out.values())


def test_a_module_is_held_out_with_its_docstrings_or_not_at_all(corpus: Path) -> None:
    code, held_out_code = documents_of(corpus, "code"), documents_of(corpus, "held_out/code")
    docs, held_out_docs = documents_of(corpus, "docs"), documents_of(corpus, "held_out/docs")
    assert not {f"docstrings/{module_of(file)}" for file in held_out_code} & set(docs)
    assert not {f"docstrings/{module_of(file)}" for file in code} & set(held_out_docs)
    # and by content: no long docstring of a held-out module stands in a file that is trained on
    sources = "\n".join(code.values())
    texts = [text for name, text in held_out_docs.items() if name.startswith("docstrings/")]
    lines = [line for text in texts for line in text.splitlines() if len(line) > 60]
    assert lines
    assert sum(line in sources for line in lines) <= 0.02 * len(lines)  # phrases that modules copy from each other


def documents(names: list[str]) -> list[Document]:
    return [Document(dataset, f"{dataset}/{name}", name, f"{dataset} {name}") for name in names for dataset in DATASETS]


def test_the_choice_is_stable_by_seed_and_does_not_depend_on_other_sources() -> None:
    names = [f"module_{index}" for index in range(200)]
    parts = split(documents(names), share=0.1, seed=3)
    held_out = {document.source for document in parts["held_out/code"]}
    assert 5 < len(held_out) < 40
    assert split(documents(names), share=0.1, seed=3) == parts
    assert {document.source for document in split(documents(names), share=0.1, seed=4)["held_out/code"]} != held_out
    fewer = [name for name in names if name != "module_7"]
    assert {document.source for document in split(documents(fewer), share=0.1, seed=3)["held_out/code"]} == held_out - {
        "module_7"
    }


def test_few_sources_still_give_several_held_out_documents() -> None:
    parts = split(documents([f"module_{index}" for index in range(10)]), share=0.01, seed=0)
    assert [len(parts[name]) for name in ("held_out/code", "held_out/docs")] == [LEAST_HELD_OUT, LEAST_HELD_OUT]


def test_docstrings_stand_under_qualified_names_in_source_order() -> None:
    method = '        async def f(self):\n            """Of\n            f."""\n'
    source = f'"""Top."""\nif True:\n    class A:\n        """Of A."""\n{method}'
    assert docstrings("pack.mod", source) == "pack.mod\n\nTop.\n\npack.mod.A\n\nOf A.\n\npack.mod.A.f\n\nOf\nf."
    assert docstrings("broken", "def f(:") == ""


def test_files_that_are_not_utf8_are_left_out_and_counted(tool: Tool, tmp_path: Path) -> None:
    library = small_library(tmp_path / "library")
    (library / "latin.py").write_bytes(b"# caf\xe9\n")
    outcome = tool("corpus", tmp_path / "out", "--library", library)
    assert outcome.code == 0
    assert "left out: 1 files that are not UTF-8" in outcome.out
    assert "latin.py" not in documents_of(tmp_path / "out", "code") | documents_of(tmp_path / "out", "held_out/code")


def test_it_reports_documents_and_bytes_of_each_part_and_repeats_itself(tool: Tool, tmp_path: Path) -> None:
    library = small_library(tmp_path / "library")
    outcome = tool("corpus", tmp_path / "a", "--library", library)
    assert tool("corpus", tmp_path / "b", "--library", library).code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    texts = documents_of(tmp_path / "a", "code").values()
    assert f"{'code':<14} {len(texts):>6,} documents {sum(map(len, texts)):>12,} bytes" in outcome.out
    assert f"written: {tmp_path / 'a'}" in outcome.out


@pytest.mark.skipif(not OTHER_LIBRARIES, reason="the system has no Python of its own")
def test_the_systems_own_library_works(tool: Tool, tmp_path: Path) -> None:
    assert tool("corpus", tmp_path / "out", "--library", OTHER_LIBRARIES[0]).code == 0
    assert len(documents_of(tmp_path / "out", "code")) > 100


def test_a_fault_while_writing_leaves_nothing_behind(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = small_library(tmp_path / "library")
    write = corpus_command.write_jsonl

    def full_disk(folder: Path, documents: list[Document], files: int) -> None:
        write(folder, documents, files)
        if folder.name == "docs":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_command, "write_jsonl", full_disk)
    outcome = tool("corpus", tmp_path / "new" / "out", "--library", library)
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["library"]


def test_bad_input_is_refused_with_one_sentence(tool: Tool, tmp_path: Path) -> None:
    library = small_library(tmp_path / "library")
    tiny = small_library(tmp_path / "tiny", modules=3)
    used = small_library(tmp_path / "used", modules=1)
    (tmp_path / "file").write_text("x")
    new = tmp_path / "new"
    before = contents(tmp_path)
    for arguments, sentence in (
        ((used, "--library", library), "is not empty; name a new folder"),
        ((tmp_path / "file", "--library", library), "is a file; name a new folder"),
        ((new, "--library", tmp_path / "nowhere"), "no .py files there; give the folder that holds os.py"),
        ((new, "--library", tiny), "gives 3 sources of code, too few"),
        ((new, "--held-out-share", "0.9"), "0.9 is not a share above 0 and up to 0.5"),
        ((new, "--held-out-share", "many"), "'many' is not a number"),
        ((new, "--seed", "-1"), "-1 is too small; give 0 or more"),
    ):
        outcome = tool("corpus", *arguments)
        assert (outcome.code, sentence in outcome.err) == (2, True), (arguments, outcome)
        assert not new.exists()
    assert contents(tmp_path) == before
