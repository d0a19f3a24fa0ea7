"""`tokenize` killed and given again: finished shards are checked and kept, damaged ones made again, the bytes are the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from document_files import REPOSITORY, Tool, contents, python
from tokenized import Gate

from data_tools.inputs import find_inputs
from data_tools.tokenize_text import TokenizeSettings, tokenize
from data_tools.tokenizer_file import open_tokenizer

SHARDS = 4
HELD = 2  # the shard that a test holds back


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the corpus's prose in four files."""
    folder = tmp_path_factory.mktemp("source")
    for file in (corpus / "docs").iterdir():
        (folder / file.name).write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:30]))
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nobody disturbs writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    tokenize(settings(source, tokenizer, folder, workers=1))
    return contents(folder)


def settings(source: Path, tokenizer: Path, folder: Path, **more: object) -> TokenizeSettings:
    """The corpus's prose in four shards, the third of which waits at a gate."""
    gate = Gate(folder.parent / "closed", HELD)
    inputs = find_inputs([source], "text")
    return TokenizeSettings(inputs, folder, open_tokenizer(str(tokenizer)), tasks=SHARDS, steps=(gate,), **more)  # type: ignore[arg-type]


class Held:
    """A run in a process of its own, with all shards finished but the one at the gate."""

    def __init__(self, source: Path, tokenizer: Path, folder: Path) -> None:
        self.folder, self.closed = folder, folder.parent / "closed"
        self.closed.touch()
        code = (
            "import signal, sys; from pathlib import Path; from data_tools.__main__ import main\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run under nohup inherit a deaf ear\n"
            "from data_tools import tokenize_text\n"
            "from test_tokenize_resume import settings\n"
            "tokenize_text.run = lambda options: tokenize_text.tokenize(settings(*map(Path, sys.argv[1:]), workers=2))\n"
            "sys.exit(main(['tokenize', 'a', 'b', '--tokenizer', 'c']))"
        )
        paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(tokenizer), str(folder)],
            env=os.environ | {"PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        parts = folder.parent / ".out.partial" / "parts"
        until(lambda: self.closed.read_text() != "" and len(list(parts.glob("*.json"))) == SHARDS - 1)
        self.worker = int(self.closed.read_text())

    def wait(self) -> str:
        """Standard error, when the process has ended."""
        err = self.process.communicate(timeout=30)[1]
        until(lambda: not Path(f"/proc/{self.worker}").exists())
        self.closed.unlink(missing_ok=True)
        return err


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def held(source: Path, tokenizer: Path, tmp_path: Path) -> Iterator[Held]:
    run = Held(source, tokenizer, tmp_path / "out")
    yield run
    run.process.kill()
    run.closed.unlink(missing_ok=True)


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each shard in a working folder."""
    files = (folder.parent / ".out.partial" / "files").glob("*.ds")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_killed_command_goes_on_with_what_is_missing(
    held: Held, source: Path, tokenizer: Path, whole: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    held.process.kill()
    held.wait()  # its worker ends with it
    assert not held.folder.exists()
    kept = shards(held.folder)
    assert len(kept) == SHARDS - 1
    damaged = held.folder.parent / ".out.partial" / "files" / sorted(kept)[0]
    with damaged.open("r+b") as file:
        file.write(b"\xff")
    tokenize(settings(source, tokenizer, held.folder, workers=1))
    assert contents(held.folder) == whole
    assert "part 00000 is made again: 00000_00000_doc_shuffled.ds is not what was written" in capfd.readouterr().err
    now = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in held.folder.glob("*.ds")}
    assert {name for name in kept if now[name] == kept[name]} == set(sorted(kept)[1:])
    assert [path.name for path in held.folder.parent.iterdir()] == ["out"]


def test_a_killed_worker_ends_the_command_at_once(held: Held, source: Path, tokenizer: Path, whole: dict[str, bytes]) -> None:
    os.kill(held.worker, signal.SIGKILL)
    err = held.wait()
    assert held.process.returncode == 2
    assert f"3 finished parts are kept in {held.folder.parent}/.out.partial; the same command goes on with them" in err
    assert err.splitlines()[-1] == (
        f"error: the worker of task {HELD} died (killed by SIGKILL); SIGKILL mostly means that memory ran out: give a smaller "
        "--workers, and the same command again"
    )
    tokenize(settings(source, tokenizer, held.folder, workers=1))
    assert contents(held.folder) == whole


def test_an_interrupted_command_says_how_to_go_on(held: Held) -> None:
    held.process.send_signal(signal.SIGINT)
    err = held.wait()
    assert held.process.returncode == 130
    kept = held.folder.parent / ".out.partial"
    assert err.splitlines()[-1] == f"interrupted; 3 finished parts are kept in {kept}; the same command goes on with them"


def test_a_second_command_on_the_folder_is_refused(held: Held, tool: Tool, source: Path, tokenizer: Path) -> None:
    before = shards(held.folder)
    for more in ([], ["--fresh"]):
        outcome = tool("tokenize", source, held.folder, "--tokenizer", tokenizer, "--tasks", SHARDS, *more)
        assert outcome.code == 2
        assert f"out is being written by PID {held.process.pid} on " in outcome.err
    assert shards(held.folder) == before


def test_shards_of_other_settings_are_refused_by_name(
    held: Held, tool: Tool, source: Path, corpus: Path, tokenizer: Path
) -> None:
    held.process.kill()
    held.wait()
    before = contents(held.folder.parent)
    command = ["tokenize", source, held.folder, "--tokenizer", tokenizer, "--tasks"]
    outcome = tool(*command, 3, "--seed", 5)
    assert outcome.code == 2
    assert (
        "holds parts made with other settings: --seed was 0 and is 5 now, --tasks was 4 and is 3 now; give the" in outcome.err
    )
    outcome = tool("tokenize", corpus / "code", held.folder, "--tokenizer", tokenizer, "--tasks", SHARDS)
    assert "other settings: inputs was '4 files of " in outcome.err
    assert {**contents(held.folder.parent), ".out.partial/lock": b""} == {**before, ".out.partial/lock": b""}
    assert tool(*command, 3, "--fresh", "--workers", 1).code == 0
    assert len(list(held.folder.glob("*.ds"))) == 3


def test_a_full_disk_leaves_nothing_that_looks_whole(tool: Tool, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Here a file cannot grow past a limit; the writer learns of both in the same way."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
    code = limited + "from data_tools.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = ["tokenize", corpus / "held_out", tmp_path / "out", "--tokenizer", tokenizer, "--tasks", 2, "--workers", 2]
    done = python("-c", code, *command)
    assert (done.code, "out cannot be written: File too large; check its place, rights and free space" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()
    assert tool(*command, "--workers", 1).code == 0
