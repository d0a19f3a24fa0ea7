"""Files of a repository come from the Hub or from a mirror: the right ones, of one commit, going on where it stopped."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from document_files import contents, write_documents
from hub_double import COMMIT, HubDouble, hub_double

from data_tools import hub_files
from data_tools.catalogue import CatalogueEntry
from data_tools.hub_files import Hub, MissingText
from data_tools.hub_listing import HubFile, glob_to_regex, kept_listing, spaced
from smol_config import UserError
from smol_console import Progress

ENTRY = CatalogueEntry(group="code", repository="org/set", files=["data/*/*.jsonl*"], text_key="text")


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """A folder of one repository with two subsets' files and what else lies in repositories."""
    root = tmp_path / "repositories" / "org" / "set"
    for name in ("data/one/a.jsonl", "data/one/b.jsonl.gz", "data/two/c.jsonl", "data/deep/er/d.jsonl", "other/e.jsonl"):
        write_documents(root / name, [f"text of {name} {index}" for index in range(20)])
    (root / "README.md").write_text("# card")
    return tmp_path / "repositories"


@pytest.fixture
def server(repositories: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.setattr(hub_files, "FIRST_WAIT", 0.01)
    with hub_double(repositories, monkeypatch) as double:
        yield double


def fetch(hub: Hub, folder: Path, entry: CatalogueEntry = ENTRY, max_gigabytes: int | None = None) -> None:
    hub.fetch(hub.listing(entry, folder, max_gigabytes), folder)


def fetched(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith((".cache", ".listing"))}


def wanted(repositories: Path) -> dict[str, bytes]:
    names = ("data/one/a.jsonl", "data/one/b.jsonl.gz", "data/two/c.jsonl")
    return {name: (repositories / "org/set" / name).read_bytes() for name in names}


def test_the_matching_files_come_from_the_hub_with_their_commit(server: HubDouble, repositories: Path, tmp_path: Path) -> None:
    fetch(Hub(), tmp_path / "text")
    assert fetched(tmp_path / "text") == wanted(repositories)
    assert all(f"/resolve/{COMMIT}/" in line for line in server.requests if " /datasets/" in line)
    listing = kept_listing(tmp_path / "text")
    assert listing is not None
    assert (listing.commit, listing.revision, len(listing.files)) == (COMMIT, "main", 3)
    assert [file.sha256 is not None for file in listing.files] == [False, True, False]


def test_what_is_whole_is_not_asked_for_again(server: HubDouble, tmp_path: Path) -> None:
    fetch(Hub(), tmp_path / "text")
    server.requests.clear()
    fetch(Hub(), tmp_path / "text")
    assert server.requests == []


def test_only_missing_and_short_files_come_again(server: HubDouble, repositories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    fetch(Hub(), folder)
    (folder / "data/one/a.jsonl").unlink()
    (folder / "data/two/c.jsonl").write_bytes(b"short")
    server.requests.clear()
    fetch(Hub(), folder)
    assert sorted(server.downloads()) == ["a.jsonl", "c.jsonl"]
    assert fetched(folder) == wanted(repositories)


def test_a_file_that_appears_later_is_not_of_the_commit_that_was_listed(
    server: HubDouble, repositories: Path, tmp_path: Path
) -> None:
    hub = Hub()
    listing = hub.listing(ENTRY, tmp_path / "text")
    write_documents(repositories / "org/set/data/one/new.jsonl", ["later"])
    hub.fetch(listing, tmp_path / "text")
    fetch(Hub(), tmp_path / "text")
    assert len(fetched(tmp_path / "text")) == 3


def test_busy_servers_and_broken_connections_are_tried_again(server: HubDouble, repositories: Path, tmp_path: Path) -> None:
    server.faults = {"a.jsonl": [503, 0, 500], "b.jsonl.gz": [0], "c.jsonl": [502]}
    fetch(Hub(), tmp_path / "text")
    assert fetched(tmp_path / "text") == wanted(repositories)


def test_a_file_that_never_comes_is_said_and_the_others_are_kept(server: HubDouble, repositories: Path, tmp_path: Path) -> None:
    server.faults = {"c.jsonl": [500] * 100}
    with pytest.raises(MissingText, match=r"org/set: .*500.*, in 6 tries; give the same command again to go on"):
        fetch(Hub(downloads=1), tmp_path / "text")
    server.faults, server.requests = {}, []
    assert len(fetched(tmp_path / "text")) == 2
    fetch(Hub(), tmp_path / "text")
    assert server.downloads() == ["c.jsonl"]
    assert fetched(tmp_path / "text") == wanted(repositories)


def test_a_file_whose_bytes_are_not_those_listed_comes_again(server: HubDouble, repositories: Path, tmp_path: Path) -> None:
    hub = Hub()
    listing = hub.listing(ENTRY, tmp_path / "text")
    good = (repositories / "org/set/data/one/b.jsonl.gz").read_bytes()
    (repositories / "org/set/data/one/b.jsonl.gz").write_bytes(b"x" * len(good))
    with pytest.raises(MissingText, match=r"b.jsonl.gz did not come as the Hub's list says, in 6 tries"):
        hub.fetch(listing, tmp_path / "text")
    (repositories / "org/set/data/one/b.jsonl.gz").write_bytes(good)
    fetch(Hub(), tmp_path / "text")
    assert fetched(tmp_path / "text") == wanted(repositories)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"repository": "org/gated"}, "org/gated is gated; accept its terms at https://huggingface.co/datasets/org/gated"),
        ({"repository": "org/no"}, "org/no at main is not on the Hub or not open to you; mend the catalogue or set HF_TOKEN"),
        ({"revision": "abc"}, "org/set at abc is not on the Hub"),
        ({"files": ["nothing/*"]}, "org/set at main has no file like nothing/*; mend the patterns in the catalogue"),
    ],
)
def test_what_the_hub_does_not_give_is_said(
    server: HubDouble, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(MissingText) as caught:
        fetch(Hub(), tmp_path / "text", ENTRY.model_copy(update=changes))
    assert sentence in str(caught.value)
    assert not (tmp_path / "text").exists()


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = []
    monkeypatch.setattr(hub_files.time, "sleep", asked.append)
    hub = Hub()
    for name in ("one", "two"):
        with pytest.raises(MissingText, match=r"the Hub is not within reach \(.*\); go where it is, or give --hub-root"):
            fetch(hub, tmp_path / name)
    assert asked == []


def test_a_disk_that_is_full_ends_the_run(server: HubDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(Hub(), tmp_path / "text")


def test_a_mirrors_files_are_linked_not_copied(repositories: Path, tmp_path: Path) -> None:
    fetch(Hub(mirror=repositories), tmp_path / "text")
    assert fetched(tmp_path / "text") == wanted(repositories)
    assert all((tmp_path / "text" / name).is_symlink() for name in wanted(repositories))


def test_a_mirror_without_the_repository_or_with_pointers_only_is_said(repositories: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingText, match="org/no is not there; put a copy of the repository into the mirror"):
        fetch(Hub(mirror=repositories), tmp_path / "text", ENTRY.model_copy(update={"repository": "org/no"}))
    pointer = repositories / "org/set/data/one/a.jsonl"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n")
    with pytest.raises(MissingText, match=r"a.jsonl is a Git LFS pointer, not the file; run git lfs pull"):
        fetch(Hub(mirror=repositories), tmp_path / "text")


def test_a_mirror_that_changed_or_went_is_said(repositories: Path, tmp_path: Path) -> None:
    fetch(Hub(mirror=repositories), tmp_path / "text")
    (repositories / "org/set/data/one/a.jsonl").write_text("{}")
    with pytest.raises(MissingText, match=r"a.jsonl is not the file of [0-9,]+ bytes that was listed; mend the mirror"):
        fetch(Hub(mirror=repositories), tmp_path / "text")
    with pytest.raises(MissingText, match=r"was linked from a mirror and misses data/one/a.jsonl; give it with --hub-root"):
        fetch(Hub(), tmp_path / "text")


def test_all_downloads_end_when_one_cannot_go_on(server: HubDouble, tmp_path: Path) -> None:
    server.faults = {"a.jsonl": [404], "c.jsonl": [1]}
    with pytest.raises(MissingText, match="org/set at 0123456789abcdef0123456789abcdef01234567 is not on the Hub"):
        fetch(Hub(), tmp_path / "text")
    assert 0 < server.megabytes < 200  # of 400: it is told to stop when its next 10 MB are there
    assert not (tmp_path / "text/data/two/c.jsonl").exists()


def test_progress_counts_the_bytes_that_came_for_good(
    server: HubDouble, repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Progress] = []
    start = Progress.__enter__
    monkeypatch.setattr(Progress, "__enter__", lambda progress: seen.append(progress) or start(progress))
    server.faults = {"a.jsonl": [0, 0], "b.jsonl.gz": [503]}
    fetch(Hub(), tmp_path / "text")
    (progress,) = seen
    assert progress.done == progress.total == sum(map(len, wanted(repositories).values()))


def test_a_folder_fetched_otherwise_is_refused(repositories: Path, tmp_path: Path) -> None:
    hub = Hub(mirror=repositories)
    fetch(hub, tmp_path / "text")
    with pytest.raises(UserError, match=r"text was fetched with patterns .*, asked for is \['other/\*'\]; ask for the former"):
        fetch(hub, tmp_path / "text", ENTRY.model_copy(update={"files": ["other/*"]}))
    with pytest.raises(UserError, match="was fetched with max_gigabytes None, asked for is 3"):
        fetch(hub, tmp_path / "text", max_gigabytes=3)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("data/*/*.parquet", ["data/a/b.parquet"], ["data/b.parquet", "data/a/c/b.parquet", "data/a/bxparquet"]),
        ("data/**/*.jsonl", ["data/a.jsonl", "data/b/c/a.jsonl"], ["a.jsonl", "data/a.jsonl.gz"]),
        ("a?(1).txt", ["ab(1).txt"], ["a/(1).txt", "ab1.txt"]),
        ("data/**", ["data/a", "data/b/c"], ["data", "datas/a"]),
    ],
)
def test_patterns_match_paths_of_the_repository(pattern: str, yes: list[str], no: list[str]) -> None:
    assert all(re.fullmatch(glob_to_regex(pattern), path) for path in yes)
    assert not any(re.fullmatch(glob_to_regex(pattern), path) for path in no)


def test_files_of_a_budget_are_spread_evenly_and_never_none() -> None:
    files = [HubFile(path=str(index), bytes=10 + index % 3) for index in range(100)]
    chosen = spaced(files, 220)
    assert 180 < sum(file.bytes for file in chosen) <= 220
    places = [int(file.path) for file in chosen]
    assert max(second - first for first, second in pairwise(places)) <= 6
    assert spaced(files, 5) == files[:1]
    assert spaced(files, 10_000) == files
