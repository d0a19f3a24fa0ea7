"""export --watch: what fails is recorded and left alone, what may pass is waited for, and the rest is exported."""

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from exported_runs import at_first_tensor, events, exports, once, tell
from exporter_process import Exporters
from small_models import figures

from conversion import ConversionError, background, export, service
from conversion.export_records import RECORDS_NAME, Records
from conversion.safetensors_files import SafetensorsWriter
from conversion.watching import sole_worker

# --- what goes wrong with a checkpoint -------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_recorded_and_tried_again_only_on_request(run: Path, exporter: Exporters) -> None:
    file = next((run / "iter_0000005").glob("*.distcp"))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    ran = exporter("--watch", run, "--once")
    assert ran.code == 2 and exports(run) == ["step_10"]
    assert "step_5 is NOT made" in ran.out
    assert f"error: 1 not done: {run / 'hf' / 'step_5'} is not made: checkpoint {run / 'iter_0000005'} is damaged (" in ran.err
    file.write_bytes(content)
    ran = exporter("--watch", run, "--once")
    assert ran.code == 2 and ran.err.endswith("--retry-failed tries it again\n") and exports(run) == ["step_10"]
    assert exporter("--watch", run, "--once", "--retry-failed").code == 0
    assert exports(run) == ["step_10", "step_5"]


def wrong_for_step_5() -> None:
    write = SafetensorsWriter.write

    def wrong(writer: SafetensorsWriter, name: str, tensor: torch.Tensor) -> None:
        spoilt = name == "model.norm.weight" and "step_5" in str(writer._folder)
        write(writer, name, tensor + 1 if spoilt else tensor)

    SafetensorsWriter.write = wrong  # type: ignore[method-assign]


def test_an_export_that_is_not_equal_is_recorded_and_the_next_one_made(run: Path, exporter: Exporters) -> None:
    tell(run, "done")
    ran = exporter("--watch", run, "--every", "0.2", setup=wrong_for_step_5)
    assert ran.code == 1 and "step_5 is not made: parity failed: " in ran.err
    assert exports(run) == ["step_10", "step_5.partial"]  # with the reason in parity.json
    assert not figures(run / "hf" / "step_5.partial")["passed"]
    assert exporter("--watch", run, "--once").code == 1
    assert exports(run) == ["step_10", "step_5.partial"] and events(run).count(("exporting", 5)) == 1
    assert exporter("--watch", run, "--once", "--retry-failed").code == 0
    assert exports(run) == ["step_10", "step_5"]


@pytest.mark.parametrize("file", ["state.json", "run.yaml"])
def test_a_checkpoint_that_says_nothing_of_itself_is_recorded(run: Path, file: str, exporter: Exporters) -> None:
    (run / "iter_0000005" / file).write_text("[")
    for _ in range(2):
        ran = exporter("--watch", run, "--once")
        assert ran.code == 2 and exports(run) == ["step_10"], ran.err
    assert events(run).count(("failed", 5)) == 1


def remove(checkpoint: Path) -> None:
    """As retention does."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.partial")))


def test_a_checkpoint_removed_while_it_is_exported_is_no_error(run: Path, exporter: Exporters) -> None:
    old = run / "iter_0000005"
    ran = exporter("--watch", run, "--once", setup=partial(at_first_tensor, remove, old))
    assert ran.code == 0, ran.err
    assert f"{old} was removed while it was exported" in ran.out
    assert exports(run) == ["step_10"] and ("failed", 5) not in events(run)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_export_that_runs_out_of_memory_takes_nothing_along(run: Path, exporter: Exporters) -> None:
    ran = exporter("--watch", run, "--once", setup=partial(at_first_tensor, once, run / "mark", kill_myself))
    assert ran.code == 2 and "its process was killed (signal 9), as the system does when memory runs out" in ran.err
    assert exports(run) == ["step_10"]


def err() -> None:
    raise IndexError("list index out of range")


def test_an_error_that_nobody_foresaw_is_recorded_with_its_traceback(run: Path, exporter: Exporters) -> None:
    ran = exporter("--watch", run, "--once", setup=partial(at_first_tensor, err))
    assert ran.code == 2 and ran.err.count("is not made: IndexError: list index out of range") == 2
    assert 'raise IndexError("list index' in ran.err and exports(run) == []


# --- what may pass ---------------------------------------------------------------------------------------------------------


def full_at_first() -> None:
    free = iter([10**6, 10**6])
    export.free_bytes = lambda folder: next(free, 10**12)  # type: ignore[attr-defined]


def test_without_room_it_waits(run: Path, exporter: Exporters) -> None:
    tell(run, "done")
    ran = exporter("--watch", run, "--every", "0.2", setup=full_at_first)
    assert ran.code == 0, ran.err
    assert ran.out.count("step_5 is not made: it needs 64.3 MB and 1.0 MB are free; make room; tried again in 0 s") == 1
    assert exports(run) == ["step_10", "step_5"]
    assert sorted(events(run)) == sorted((event, step) for step in (5, 10) for event in ("exporting", "exported"))


def disk_is_full() -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_meanwhile_is_waited_for_too(run: Path, exporter: Exporters) -> None:
    ran = exporter("--watch", run, "--once", setup=partial(at_first_tensor, once, run / "mark", disk_is_full))
    assert ran.code == 2 and "No space left on device" in ran.err
    assert exports(run) == ["step_10"] and ("failed", 5) not in events(run)
    assert exporter("--watch", run, "--once").code == 0
    assert exports(run) == ["step_10", "step_5"]


def test_waits_grow_up_to_an_hour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    later = service.Later(60)
    assert later.is_due("push")
    waits = []
    for _ in range(8):
        later.put_off("push", "no answer")
        assert not later.is_due("push") and later.is_due("step_1")
        now[0] += (wait := next(seconds for seconds in range(0, 9999, 60) if now[0] + seconds >= later._waits["push"][0]))
        assert later.is_due("push")
        waits.append(wait)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert capsys.readouterr().out.rstrip().endswith("no answer; tried again in 3600 s")
    later.put_off("push", "slow down", at_least=5000)  # as the other side wishes
    assert later._waits["push"][1] == 5000 and later.waiting == {"push": "slow down"}
    later.done("push")
    assert later.is_due("push") and not later.waiting


# --- records, lock, children -----------------------------------------------------------------------------------------------


def test_half_a_line_of_the_records_is_passed_over(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add("exporting", 5, checkpoint="abc", revision="step-5")
    with (tmp_path / RECORDS_NAME).open("a") as file:
        file.write('{"event": "failed", "st')
    again = Records(tmp_path)
    assert again.exports[5].failed is None
    again.add("pushed", 5, target="org/name", revision="step-5")
    assert Records(tmp_path).exports[5].pushed == {"org/name"}


def test_what_cannot_be_recorded_or_locked_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORDS_NAME).mkdir()
    with pytest.raises(IsADirectoryError):
        Records(tmp_path)
    (tmp_path / RECORDS_NAME).rmdir()
    records = Records(tmp_path)
    (tmp_path / RECORDS_NAME).mkdir()
    with pytest.raises(ConversionError, match=r"export\.jsonl cannot be written \(Is a directory\); make room"):
        records.add("exporting", 5)
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConversionError, match=r"hf cannot be written to \(Not a directory\); an exporter needs to"),
        sole_worker(tmp_path / "file" / "hf" / "lock", "an exporter"),
    ):
        pass

    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(ConversionError, match="mount the file system with locks"),
        sole_worker(tmp_path / "hf" / "lock", "an exporter"),
    ):
        pass


def test_trouble_with_disk_or_network_is_told_from_other_errors() -> None:
    def outcome(raised: BaseException, cause: BaseException | None = None) -> type:
        raised.__cause__ = cause
        return type(background._told(raised))

    assert outcome(OSError(28, "full")) is background.MayPass
    assert outcome(ConversionError("not made"), OSError(122, "quota")) is background.MayPass
    assert outcome(ConversionError("tokenizer"), ConnectionError("no route")) is background.MayPass
    assert outcome(ConversionError("tokenizer"), FileNotFoundError(2, "no such file")) is ConversionError
    assert outcome(ConversionError("damaged")) is ConversionError
    assert outcome(ZeroDivisionError()) is background.Died
    assert str(background._told(ZeroDivisionError())) == "ZeroDivisionError: "


def test_a_child_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    def never() -> bool:
        return False

    with pytest.raises(background.Died, match="its process ended with 3"):
        background.call(os._exit, 3, threads=1, stop=never)
    with pytest.raises(background.Died, match="its process was ended by signal 12"):
        background.call(lambda: os.kill(os.getpid(), signal.SIGUSR2), threads=1, stop=never)
    with pytest.raises(background.Stopped):
        background.call(time.sleep, 600, threads=1, stop=lambda: True)
    assert background.call(max, 3, 5, threads=1, stop=never) == 5
    # Sent to a whole group of processes: what becomes of it is for the parent to say.
    assert background.call(lambda: os.kill(os.getpid(), signal.SIGTERM), threads=1, stop=never) is None
