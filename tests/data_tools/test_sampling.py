"""Samples of a text: the right size, uniform, the same whatever the files' order; and the number every document has."""

import gzip
import json
from pathlib import Path

import pytest
from document_files import read_documents, write_documents

from data_tools import sampling
from data_tools.inputs import find_inputs
from data_tools.sampling import position, sample_texts


def test_all_of_a_text_that_fits_is_taken(corpus: Path) -> None:
    texts = [document["text"] for document in read_documents(corpus / "held_out" / "docs")]
    size = sum(len(text.encode()) for text in texts)
    inputs = find_inputs([corpus / "held_out" / "docs"], "text")
    assert sorted(sample_texts(inputs, size)) == sorted(texts)
    assert sorted(sample_texts(inputs, 10 * size)) == sorted(texts)


def test_a_sample_has_the_asked_size_and_whole_documents_but_the_last(corpus: Path) -> None:
    texts = {document["text"] for document in read_documents(corpus / "docs")}
    sample = list(sample_texts(find_inputs([corpus / "docs"], "text"), 500_000))
    assert 500_000 - 4 < sum(len(text.encode()) for text in sample) <= 500_000  # a character is at most 4 bytes
    assert set(sample[:-1]) < texts
    assert any(text.startswith(sample[-1]) for text in texts)


def test_a_sample_does_not_depend_on_the_order_of_documents_and_files(tmp_path: Path) -> None:
    texts = [f"{'word ' * (index % 17)}{index}" for index in range(3000)]
    write_documents(tmp_path / "one" / "a.jsonl", texts)
    for part in range(5):
        write_documents(tmp_path / "many" / f"{4 - part}.jsonl", texts[part::5][::-1])
    one, many = (list(sample_texts(find_inputs([tmp_path / name], "text"), 20_000)) for name in ("one", "many"))
    assert one == many
    assert one != list(sample_texts(find_inputs([tmp_path / "one"], "text"), 20_000, seed=1))


def test_documents_are_sampled_from_everywhere_in_a_file(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "a.jsonl", [f"{index:08d}" for index in range(20_000)])
    sample = [int(text) for text in sample_texts(find_inputs([source], "text"), 8 * 2000)]
    assert len(sample) == len(set(sample)) == 2000
    per_tenth = [sum(index // 2000 == tenth for index in sample) for tenth in range(10)]
    # 200 expected in each, variance 180: chi-square of 9 degrees of freedom, 27.9 at one in a thousand; the seed is fixed.
    assert sum((count - 200) ** 2 / 180 for count in per_tenth) < 27.9


def test_of_a_text_much_larger_than_the_sample_only_some_files_are_read(tmp_path: Path) -> None:
    for part in range(40):
        write_documents(tmp_path / f"{part:02d}.jsonl", [f"{part} {index} {'x' * 80}" for index in range(100)])
    sample = list(sample_texts(find_inputs([tmp_path], "text"), 10_000))
    files = {int(text.split()[0]) for text in sample}
    assert 1 < len(files) < 20
    assert max(files) - min(files) > 20


def test_the_sample_is_held_in_the_memory_of_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    push = sampling.heapq.heappush

    def watched(heap: list[tuple[int, bytes]], item: tuple[int, bytes]) -> None:
        push(heap, item)
        held.append(sum(len(data) for _, data in heap))

    monkeypatch.setattr(sampling.heapq, "heappush", watched)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:  # the size on disk says nothing
        for index in range(5000):
            file.write(json.dumps({"text": f"{index} " + "y" * 1000}) + "\n")
    size = sum(len(text) for text in sample_texts(find_inputs([tmp_path], "text"), 50_000))
    assert size == 50_000
    assert max(held) <= 50_000 + 2 * 1005  # one document beyond the budget, one that has just come


def test_numbers_of_documents_are_uniform_and_differ_by_purpose_and_seed() -> None:
    texts = [f"document {index}".encode() for index in range(10_000)]
    numbers = [position(text, "held out", 0) for text in texts]
    # the mean of 10,000 uniform numbers has a standard deviation of 0.0029
    assert abs(sum(numbers) / 10_000 - 0.5) < 0.012
    assert all(0 <= number < 1 for number in numbers)
    below = {text for text, number in zip(texts, numbers, strict=True) if number < 0.1}
    for other in (("sample", 0), ("held out", 1)):
        both = sum(position(text, *other) < 0.1 for text in below)
        assert 60 < both < 150  # a tenth of about a thousand: the two choices know nothing of each other
    assert position(b"frozen", "held out", 0) == pytest.approx(0.7684785363956869, abs=1e-15)
