"""A killed `shuffle`, given again, goes on and gives the same bytes; damage and other settings are noticed."""

from pathlib import Path

import pytest
from document_files import Tool, contents, python
from shuffled_tokens import S, shuffled, write_source
from token_folders import overwrite

from data_tools.output import Working


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "tokens")


KILLED = """
import os, signal, sys
from pathlib import Path
from data_tools import shuffle
from data_tools.output import Working
from smol_data.manifest import Manifest

shuffle._chunks_that_fit = lambda *_: 500
left, finish = int(sys.argv[1]), Working.finish

def dying(*arguments):
    global left
    left -= 1
    if left == 0:  # in the middle of a part: its files are written, its record is not
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(*arguments)

Working.finish = dying
Manifest.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
source, out = Path(sys.argv[2]), Path(sys.argv[3])
options = dict(in_dir=source, out_dir=out, seed=1, epoch=0, sequence_length=32, memory=10**9, shard_size=40_000)
shuffle.run(shuffle.argparse.Namespace(**options, workers=1, fresh=False))
"""


@pytest.mark.parametrize("part", [3, 8, 1000])  # in the first pass, in the second, before the manifest
def test_a_killed_command_goes_on_and_gives_the_same_bytes(source: Path, tmp_path: Path, part: int) -> None:
    assert python("-c", KILLED, part, source, tmp_path / "out").code == -9
    assert not (tmp_path / "out").exists()
    working = Working(tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in working.files.iterdir()}
    assert len(kept) > 1
    made: list[str] = []
    finish = Working.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Working, "finish", lambda self, name, *rest: made.append(name) or finish(self, name, *rest))
        shuffled(source, tmp_path / "out")
    assert len(made) == max(0, 5 + 5 - (part - 1))
    assert contents(tmp_path / "out") == contents(shuffled(source, tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_part_that_was_damaged_meanwhile_is_made_again(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert python("-c", KILLED, 8, source, tmp_path / "out").code == -9
    files = Working(tmp_path / "out").files
    overwrite(files / "run-00001", 20_000, b"damage")
    overwrite(files / "00000_shuffled.ds", 20_000, b"damage")
    shuffled(source, tmp_path / "out")
    assert "part run-00001 is made again" in (said := capfd.readouterr().err)
    assert "part shard-00000 is made again" in said
    assert contents(tmp_path / "out") == contents(shuffled(source, tmp_path / "whole"))


def test_other_settings_are_refused_until_told_to_start_over(tool: Tool, source: Path, tmp_path: Path) -> None:
    assert python("-c", KILLED, 8, source, tmp_path / "out").code == -9
    arguments = ["--seed", 2, "--sequence-length", S, "--shard-size", "40KB", "--memory", "1GB", "--workers", 1]
    outcome = tool("shuffle", source, tmp_path / "out", *arguments)
    assert outcome.code == 2
    assert "seed was 1 and is 2 now" in outcome.err
    assert "--fresh to start over" in outcome.err
    assert tool("shuffle", source, tmp_path / "out", *arguments, "--fresh").code == 0
    assert contents(tmp_path / "out") == contents(shuffled(source, tmp_path / "whole", seed=2))
