"""Results made in parts: what is kept between attempts, what is refused, and work that is handed over to jobs elsewhere."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from document_files import Tool, contents, write_documents
from tokenized import TEXTS

from data_tools.executors import _SlurmExecutor
from data_tools.output import Part, Working, check_new_folder, resumable_folder
from smol_config import UserError
from smol_data.manifest import FileEntry, sha256_of_file

SETTINGS = {"--seed": 1, "parts": ["a", "b"]}


def make(working: Working, part: str, text: str = "text") -> None:
    """A part of one file."""
    with working.attempt(part) as folder:
        path = folder / f"{part}.txt"
        path.write_text(text)
        working.finish(part, folder, Part(files=[FileEntry(name=path.name, bytes=len(text), sha256=sha256_of_file(path))]))


@contextmanager
def failing(folder: Path) -> Iterator[Working]:
    """A command that ends with a fault."""
    with pytest.raises(UserError, match="the end"), resumable_folder(folder, SETTINGS) as working:
        yield working
        raise UserError("the end")


def test_a_failed_command_without_a_finished_part_leaves_nothing(tmp_path: Path) -> None:
    with failing(tmp_path / "new" / "out") as working, pytest.raises(ValueError), working.attempt("a") as folder:
        (folder / "half").write_text("x")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_finished_parts_are_kept_and_half_ones_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with failing(tmp_path / "out") as working:
        make(working, "a")
        (working.root / "attempts" / "b-of-a-dead-worker").mkdir()
    assert f"1 finished parts are kept in {working.root}; the same command goes on with them" in capsys.readouterr().err
    with resumable_folder(tmp_path / "out", SETTINGS) as working:
        assert list((working.root / "attempts").iterdir()) == []
        assert (working.verified("a") is not None, working.verified("b")) == (True, None)
        make(working, "b")
        assert len(working.all_parts(["a", "b"])) == 2
        working.release()
    assert contents(tmp_path) == {"out/a.txt": b"text", "out/b.txt": b"text"}


def test_what_a_command_left_that_was_killed_after_its_last_step_is_swept(tmp_path: Path) -> None:
    with resumable_folder(tmp_path / "out", SETTINGS) as working:
        make(working, "a")
        working.release()
        with pytest.raises(UserError, match="out is not empty"):
            check_new_folder(tmp_path / "out")
        assert working.root.exists(), "it is at work"
    (working.root / "parts").mkdir(parents=True)
    (working.root / "parts" / "a.json").write_text("{}")
    working.files.mkdir()
    for there in (True, False):
        with pytest.raises(UserError, match="out is not empty"):
            check_new_folder(tmp_path / "out")
        assert working.root.exists() == there, "finished parts are not lost"
        shutil.rmtree(working.files, ignore_errors=True)
    assert contents(tmp_path) == {"out/a.txt": b"text"}


def test_a_result_that_was_removed_is_made_anew_from_what_a_killed_command_left(tmp_path: Path) -> None:
    for _ in range(2):
        with resumable_folder(tmp_path / "out", SETTINGS) as working:
            assert working.finished() == []
            make(working, "a")
            working.release()
            shutil.copytree(working.root, tmp_path / "left")
        (tmp_path / "left").rename(working.root)  # as if it had been killed here
        shutil.rmtree(tmp_path / "out")


def test_a_part_that_is_missing_is_named_with_its_fault(tmp_path: Path) -> None:
    with failing(tmp_path / "out") as working:
        make(working, "a")
        with pytest.raises(UserError, match=r"part b of .*out is not finished; give the same command again to go on"):
            working.all_parts(["a", "b"])
        with pytest.raises(ValueError), working.attempt("b"):
            raise ValueError("a bad line")
        with pytest.raises(UserError, match=r"part b of .*out is not finished \(a bad line\); give the same"):
            working.all_parts(["a", "b"])
        make(working, "b")
        (working.files / "a.txt").write_text("longer text")
        with pytest.raises(UserError, match=r"a\.txt is not what was written; check the disk"):
            working.all_parts(["a", "b"])


def test_other_settings_are_refused_and_fresh_clears_them(tmp_path: Path) -> None:
    with failing(tmp_path / "out") as working:
        make(working, "a")
    other = {**SETTINGS, "--seed": 2}
    with (
        pytest.raises(UserError, match="--seed was 1 and is 2 now; give the former"),
        resumable_folder(tmp_path / "out", other),
    ):
        pass
    with resumable_folder(tmp_path / "out", other, fresh=True) as working:
        assert working.finished() == []
        assert list(working.files.iterdir()) == []


def test_a_working_folder_without_its_settings_is_begun_anew(tmp_path: Path) -> None:
    """It was made, or cleared, by a command that was killed at that moment."""
    with failing(tmp_path / "out") as working:
        make(working, "a")
    (working.root / "settings.json").unlink()
    with resumable_folder(tmp_path / "out", SETTINGS) as working:
        assert working.finished() == []


def test_two_commands_cannot_have_one_folder(tmp_path: Path) -> None:
    with failing(tmp_path / "out") as working:
        make(working, "a")
        with pytest.raises(UserError, match="out is being written by PID "), resumable_folder(tmp_path / "out", SETTINGS):
            pass
        assert working.verified("a") is not None


def test_work_given_to_jobs_is_kept_for_them(tmp_path: Path) -> None:
    with resumable_folder(tmp_path / "out", SETTINGS) as working:
        working.hand_over(["17", "18"])
    assert working.jobs == ["17", "18"]
    with resumable_folder(tmp_path / "out", SETTINGS):
        assert working.jobs == []
    assert list(tmp_path.iterdir()) == []


def test_what_slurm_jobs_are_given_finishes_the_dataset(
    tool: Tool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two executors that are pickled for the jobs, each run as its jobs run it; only sbatch is not there."""
    launched: list[_SlurmExecutor] = []

    def launch(self: _SlurmExecutor) -> None:
        if self.depends:
            self.depends.launch_job()
        self.job_id = len(launched) + 1
        launched.append(self)

    monkeypatch.setattr(_SlurmExecutor, "launch_job", launch)
    monkeypatch.setattr("data_tools.executors.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("datatrove.executor.slurm.expand_slurm_nodelist", lambda nodes: [nodes])
    monkeypatch.setenv("SLURM_NODELIST", "n1")
    for index in range(2):
        write_documents(tmp_path / "in" / f"{index}.jsonl", [f"{text} {index}" for text in TEXTS])
    command = ["tokenize", tmp_path / "in", "--tokenizer", tokenizer, "--tasks", 2]
    outcome = tool(*command, tmp_path / "out", "--executor", "slurm", "--slurm", "partition=cpu,time=10")
    assert outcome.code == 0, outcome
    assert f"submitted: Slurm jobs 1 (shards) and 2 (check and manifest); logs: {tmp_path / '.out.logs'}" in outcome.out
    assert not (tmp_path / "out").exists()
    shards, end = launched
    for rank in range(2):
        shards._run_for_rank(rank)
    end._run_for_rank(0)
    assert tool(*command, tmp_path / "local", "--workers", 1).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    assert not (tmp_path / ".out.partial").exists()
