"""`push` to what fsspec opens: whole or not marked as whole, whatever happens meanwhile."""

from pathlib import Path

import fsspec
import pytest
from hf_folders import contents, hf_folder
from small_models import Command

from conversion import Unreachable
from conversion.push import Options, push
from conversion.upload import flow
from conversion.upload.fsspec_files import FsspecFiles
from conversion.upload.objects import MANIFEST, UNFINISHED, ObjectStore, is_complete, upload_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "step_10", shards=3, megabytes=0.5)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of fsspec's, nothing there yet."""
    return f"file://{tmp_path}/kept" if request.param == "file" else f"memory://{tmp_path.name}/kept"


def kept(url: str) -> dict[str, bytes]:
    """What lies below a URL."""
    files, root = fsspec.url_to_fs(url)
    files.invalidate_cache()
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def test_any_url_of_fsspec_keeps_a_folder_in_the_same_way(url: str, folder: Path) -> None:
    assert not is_complete(url)
    assert push(folder, url, Options()).files == 9
    there = kept(url)
    assert there.pop(MANIFEST) and there == contents(folder) and is_complete(url)
    (folder / "tokenizer.json").write_text("[]")
    (folder / "README.md").unlink()
    pushed = push(folder, url, Options())
    assert (pushed.url, pushed.files, pushed.commit) == (url, 1, None)
    assert not push(folder, url, Options()).changed
    there = kept(url)
    assert there.pop(MANIFEST) and there == contents(folder)


def test_any_folder_can_be_uploaded_hidden_files_too(url: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "iter_0000010"
    (checkpoint / "parts").mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "parts/empty"):
        (checkpoint / name).write_bytes(b"" if name == "parts/empty" else name.encode())
    uploaded = upload_folder(checkpoint, url)
    assert (uploaded.files, uploaded.bytes, uploaded.url) == (3, 21, url)
    assert set(kept(url)) == {".metadata", "__0_0.distcp", "parts/empty", MANIFEST}
    assert is_complete(url)


def test_sizes_are_compared_before_a_folder_counts_as_whole(
    url: str, folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    send = FsspecFiles.send
    spoilt = [b"{", b"{"]

    def send_and_spoil(store: FsspecFiles, files: list[object]) -> None:
        send(store, files)
        if spoilt:
            store.write("config.json", spoilt.pop())

    monkeypatch.setattr(FsspecFiles, "send", send_and_spoil)
    push(folder, url, Options())
    assert capfd.readouterr().err.count("config.json has 1 bytes and not 36; 1 in all; next attempt in") == 2
    there = kept(url)
    assert there.pop(MANIFEST) and there == contents(folder)
    files, root = fsspec.url_to_fs(url)
    files.rm_file(f"{root}/config.json")
    assert not is_complete(url)
    assert push(folder, url, Options()).files == 1 and is_complete(url)


@pytest.mark.parametrize("moment", ["the manifest is cut off", "the note of an upload under way is left", "both"])
def test_an_end_at_any_moment_is_mended(moment: str, url: str, folder: Path) -> None:
    push(folder, url, Options())
    files, root = fsspec.url_to_fs(url)
    manifest = kept(url)[MANIFEST]
    if moment != "the manifest is cut off":
        files.pipe_file(f"{root}/{UNFINISHED}", manifest)
    if moment != "the note of an upload under way is left":
        files.pipe_file(f"{root}/{MANIFEST}", manifest[:-9])
    pushed = push(folder, url, Options())
    assert pushed.changed and pushed.files == (9 if moment == "the manifest is cut off" else 0)
    there = kept(url)
    assert there.pop(MANIFEST) == manifest and there == contents(folder)


def test_the_names_of_manifests_are_taken(folder: Path, command: Command) -> None:
    (folder / MANIFEST).write_text("{}")
    ran = command("push", folder, "memory://x/y")
    assert (
        ran.code == 2 and f"{folder / MANIFEST} has the name of the manifest that is kept at memory://x/y; rename it" in ran.err
    )


def test_a_place_that_fails_for_a_while_and_one_that_does_for_ever(
    folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    put, faults = files.put_file, [OSError("busy")] * 3

    def put_or_fail(*arguments: str) -> None:
        if faults:
            raise faults.pop()
        put(*arguments)

    monkeypatch.setattr(files, "put_file", put_or_fail)
    push(folder, "memory://busy/x", Options())
    assert is_complete("memory://busy/x") and waits == list(flow.DELAYS[:3])
    faults += [OSError("busy")] * 100
    with pytest.raises(Unreachable, match=r"memory://busy/y cannot be reached \(OSError\('busy'\)\)"):
        push(folder, "memory://busy/y", Options())


def test_attempts_that_bring_something_across_are_not_counted(
    folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    put, seen = files.put_file, set()

    def put_at_the_second_try(source: str, path: str) -> None:
        if path not in seen:
            seen.add(path)
            raise OSError("busy")
        put(source, path)

    monkeypatch.setattr(files, "put_file", put_at_the_second_try)
    monkeypatch.setattr(ObjectStore, "batch_bytes", 1)
    monkeypatch.setattr(flow, "DELAYS", (1.0,))
    push(folder, "memory://slow/x", Options())
    assert is_complete("memory://slow/x") and waits == [1.0] * 9


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("gcsx://a/b", "gcsx://a/b: fsspec knows no gcsx://; did you mean 'gcs'"),
        ("qqqqqq://a/b", "fsspec knows no qqqqqq://; known: abfs, "),
        ("memory://", "memory:// is no URL of a folder; write one such as s3://bucket/prefix or file:///path"),
        ("gdrive://a/b", "gdrive://a/b cannot be opened ("),
        ("file:///proc/model", "file:///proc/model cannot be used ("),
        ("https://127.0.0.1:9/x", "https://127.0.0.1:9/x"),
    ],
)
def test_urls_that_cannot_be_used(target: str, sentence: str, folder: Path, waits: list[float], command: Command) -> None:
    ran = command("push", folder, target)
    assert (ran.code, sentence in ran.err, "Traceback" in ran.err) == (2, True, False), ran.err


@pytest.mark.parametrize("option", ["--revision x", "--tag v1", "--message m", "--public"])
def test_what_only_the_hub_has_is_refused_elsewhere(option: str, folder: Path, command: Command) -> None:
    ran = command("push", folder, "memory://x/y", *option.split())
    assert ran.code == 2 and f"{option.split()[0]} is for the Hub and memory://x/y is a URL; leave it out" in ran.err
