"""Whether a job is started again, by its starts so far."""

import json
from pathlib import Path

import pytest

from slurm import starts
from slurm.starts import Start, decide, refusal


def chain(*ends: tuple[int, str | None], suspects: int = 0) -> list[Start]:
    """Starts by (newest checkpoint when it began, why it ended)."""
    return [Start("c", "1", ["n1", "n2"], step, suspects, reason) for step, reason in ends]


def test_two_restarts_without_a_new_checkpoint_are_the_last() -> None:
    crashes = chain((-1, "crash"), (-1, "crash"), (-1, "crash"))
    assert refusal(crashes[:2], -1, 10, True) is None
    assert "its last 3 starts brought no checkpoint (crash, crash, crash)" in str(refusal(crashes, -1, 10, True))
    assert refusal(crashes, 5, 10, True) is None, "the last one saved"
    later = chain((-1, "crash"), (20, "crash"), (20, None), (20, "time limit"))
    assert "no checkpoint after step 20 (crash, lost, time limit)" in str(refusal(later, 20, 10, True))


def test_going_back_is_no_progress() -> None:
    assert refusal(chain((40, "crash"), (30, "crash"), (30, "crash")), 20, 10, True)
    assert refusal(chain((40, "crash"), (30, "crash"), (20, "crash")), 30, 10, True) is None, "20 to 30"


def test_preempted_starts_do_not_count() -> None:
    assert refusal(chain(*[(-1, "preempted")] * 5, (-1, "crash"), (-1, "crash")), -1, 10, True) is None
    assert refusal(chain((-1, "crash"), (-1, "preempted"), (-1, "crash"), (-1, "crash")), -1, 10, True)


def test_a_job_without_checkpoints_may_reach_its_time_limit_as_often_as_it_likes() -> None:
    assert refusal(chain(*[(-1, "time limit")] * 5), -1, 10, False) is None
    assert "brought only crashes" in str(refusal(chain((-1, "time limit"), *[(-1, "crash")] * 3), -1, 10, False))


def test_a_chain_is_not_started_more_often_than_it_may() -> None:
    good = chain((-1, "time limit"), (10, "time limit"), (20, "time limit"))
    assert refusal(good, 30, 3, True) is None
    assert "it was started 3 times, and SMOL_MAX_RESTARTS=2" in str(refusal(good, 30, 2, True))


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        ("done", 0, "done"),
        ("stopped", 93, "stop"),
        ("time limit", 85, "again"),
        ("crash", 137, "again"),
        ("ended", 143, "leave"),
    ],
)
def test_what_follows_an_end(reason: str, code: int, expected: str) -> None:
    assert str(decide(chain((-1, reason)), code, 5, 10, True, [])) == expected


def test_nodes_suspected_since_the_chain_began_are_left_out_when_one_of_them_was_at_work() -> None:
    first = chain((-1, "asked for"), suspects=1)
    assert str(decide(first, 85, 5, 10, True, ["n9", "n2"])) == "again n2"
    assert str(decide(first, 85, 5, 10, True, ["n9"])) == "again", "said by an earlier chain"
    again = [*first, Start("c", "2", ["n1", "n3"], 5, 2, "asked for")]
    assert str(decide(again, 85, 10, 10, True, ["n9", "n2", "n3"])) == "again n2,n3"
    assert str(decide(again, 85, 10, 10, True, ["n9", "n2"])) == "again", "suspected before, and not there any more"


def test_nodes_that_failed_the_preflight_are_left_out_and_their_starts_do_not_count() -> None:
    bad = [Start("c", "1", ["n1", "n2"], -1, 0, "bad node", ["n1"])]
    assert str(decide(bad, 85, -1, 10, True, [])) == "again n1"
    assert "without n1 (failed the preflight)" in decide(bad, 85, -1, 10, True, []).sentence
    worse = [*bad, Start("c", "2", ["n2", "n3"], -1, 0, "bad node", ["n3"])]
    assert str(decide(worse, 85, -1, 10, True, [])) == "again n1,n3", "the first is still bad"
    assert refusal([*worse, *worse, *chain((-1, "crash"), (-1, "crash"))], -1, 10, True) is None
    assert str(decide([*worse, *chain((-1, "crash"))], 1, -1, 10, True, [])) == "again", "a crash points to no node"


def begin(run: Path, chain: str, restart: int = 0) -> int:
    command = ["begin", str(run), "--chain", chain, "--job", "7", "--restart", str(restart), "--nodes", "n1,n2"]
    return starts.main([*command, "--max-restarts", "4", "--trains"])


def end(run: Path, chain: str, code: int, reason: str, bad: str = "") -> int:
    command = ["end", str(run), "--chain", chain, "--job", "7", "--code", str(code), "--reason", reason, "--bad", bad]
    return starts.main([*command, "--max-restarts", "4", "--trains"])


def test_the_command_counts_a_chain_and_not_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert begin(tmp_path, "a") == 0
        assert end(tmp_path, "a", 1, "crash") == 0
        assert capsys.readouterr().out == "again\n"
    assert begin(tmp_path, "b") == 0
    assert begin(tmp_path, "a") == 0
    assert end(tmp_path, "a", 1, "crash") == 0
    assert capsys.readouterr().out == "stop\n"
    assert begin(tmp_path, "a") == 93
    assert "not started: its last 3 starts brought no checkpoint" in capsys.readouterr().err
    events = [json.loads(line)["event"] for line in (tmp_path / "slurm" / "starts.jsonl").read_text().splitlines()]
    assert events == ["start", "end", "start", "end", "start", "start", "end", "refused"]


def test_the_command_remembers_bad_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("n1,n4", "n2"):
        assert begin(tmp_path, "a") == 0
        assert end(tmp_path, "a", 85, "bad node", bad) == 0
    assert capsys.readouterr().out == "again n1,n4\nagain n1,n2,n4\n"


def test_a_whole_checkpoint_is_progress_and_a_partial_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "iter_0000010.partial").mkdir()
    assert starts.newest_step(tmp_path) == -1
    for step in (10, 9):
        (tmp_path / f"iter_{step:07d}").mkdir()
        (tmp_path / f"iter_{step:07d}" / "COMPLETE").touch()
    assert starts.newest_step(tmp_path) == 10


def test_a_list_that_cannot_be_written_or_read_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slurm").write_text("a file where a folder should be")
    assert begin(tmp_path, "a") == 0
    assert end(tmp_path, "a", 85, "time limit") == 0
    captured = capsys.readouterr()
    assert captured.out == "again\n" and "starts.jsonl cannot be written (" in captured.err
    assert begin(tmp_path, "a", restart=5) == 93, "Slurm counts too"
    (tmp_path / "slurm").unlink()
    assert begin(tmp_path, "a") == 0
    with (tmp_path / "slurm" / "starts.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert [start.reason for start in starts.read_starts(tmp_path, "a")] == [None]
