"""The environment's checks on Findings of machines that are not here, and the look at the machine that is."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smol_train import environment
from smol_train.environment import check_environment, look, read_pins, report
from smol_train.environment_checks import CHECKS, PARTS, Findings, Found, Part, faults

CLUSTER = Findings(
    python=(3, 11, 7),
    parts={part.name: Found("1.0") for part in PARTS}
    | {
        "torch": Found("2.13.0"),
        "megatron-core": Found("0.16.1"),
        "transformer-engine": Found("2.12.0"),
        "nvidia-dali": Found("2.4.0"),
    },
    torch_cuda="13.0",
    usable_gpus=8,
    nccl="2.29.7",
    driver="580.95.05",
    gpus=("NVIDIA H100 80GB HBM3, 81559 MiB",) * 8,
    transformer_engine_cuda=13,
    dali_cuda=13,
    compiler="/usr/bin/c++",
    pins={"torch": "2.13.0", "psutil": "7.2.2"},
    installed={"torch": "2.13.0+cu130", "psutil": "7.2.2"},
)
"""A machine on which everything fits."""

LAPTOP = replace(
    CLUSTER,
    parts={
        **CLUSTER.parts,
        "torch": Found("2.13.0+cpu"),
        "transformer-engine": Found(),
        "apex": Found(),
        "nvidia-ml-py": Found(),
    },
    torch_cuda=None,
    usable_gpus=0,
    nccl=None,
    driver=None,
    gpus=(),
    transformer_engine_cuda=None,
)
"""A machine without a GPU on which everything fits."""


def with_part(name: str, found: Found, base: Findings = CLUSTER) -> Findings:
    return replace(base, parts={**base.parts, name: found})


@pytest.mark.parametrize("found", [CLUSTER, LAPTOP], ids=["cluster", "laptop"])
def test_a_machine_that_fits_has_no_fault(found: Findings) -> None:
    assert faults(found) == []


MISMATCHES: list[tuple[str, Findings, str, bool]] = [
    ("old python", replace(CLUSTER, python=(3, 10, 2)), "Python 3.10.2 is too old: 3.11", True),
    ("torch missing", with_part("torch", Found()), "torch is missing (tensors, gloo and NCCL); pip install", True),
    ("psutil missing", with_part("psutil", Found()), "without it Megatron-Core's save hangs", True),
    ("dali broken", with_part("nvidia-dali", Found("2.4.0", "OSError: libx.so")), "does not import (OSError: libx.so)", True),
    (
        "te broken",
        with_part("transformer-engine", Found("2.12.0", "undefined symbol")),
        "does not import (undefined symbol)",
        False,
    ),
    ("wrong apex", with_part("apex", Found("0.9.10", "No module")), "the package index's apex is another project", False),
    ("te too new", with_part("transformer-engine", Found("2.13.0")), "2.13.0 is outside 2.10 to 2.12", False),
    ("te too old", with_part("transformer-engine", Found("2.9.0+ab12")), "2.9.0+ab12 is outside 2.10 to 2.12", False),
    ("te for cuda 12", replace(CLUSTER, transformer_engine_cuda=12), "install transformer-engine-cu13 in its place", False),
    (
        "dali for cuda 13",
        replace(CLUSTER, torch_cuda="12.8"),
        "nvidia-dali is built for CUDA 13 and torch for CUDA 12.8",
        False,
    ),
    ("dali for cuda 12", replace(CLUSTER, dali_cuda=12), "install nvidia-dali-cuda130 in its place", False),
    ("old driver", replace(CLUSTER, driver="575.57.08"), "driver 575.57.08 is older than the 580 that torch's CUDA 13.0", True),
    ("unusable gpus", replace(CLUSTER, usable_gpus=0), "the driver shows 8 GPUs, but torch can use none", True),
    (
        "cpu build on a gpu machine",
        replace(LAPTOP, driver="580.95.05", gpus=CLUSTER.gpus),
        "torch 2.13.0+cpu is a CPU build, so the 8 GPUs stay unused",
        False,
    ),
    ("gpus without te", with_part("transformer-engine", Found()), "GPUs run the slower torch backend", False),
    ("te without apex", with_part("apex", Found()), "apex is missing, so the head's weight gradients", False),
    ("no nccl", replace(CLUSTER, nccl=None), "torch has no NCCL", True),
    ("no compiler", replace(CLUSTER, compiler=None), "no C++ compiler is on PATH", False),
    (
        "another torch",
        replace(CLUSTER, installed={"torch": "2.14.0"}),
        "torch 2.14.0 is installed, the requirements pin 2.13.0",
        False,
    ),
]


@pytest.mark.parametrize(("found", "sentence", "stops"), [row[1:] for row in MISMATCHES], ids=[row[0] for row in MISMATCHES])
def test_a_mismatch_is_one_sentence(found: Findings, sentence: str, stops: bool) -> None:
    matching = [fault for fault in faults(found) if sentence in fault.sentence]
    assert [fault.stops for fault in matching] == [stops]
    assert sentence in report(found)


def test_every_check_finds_something() -> None:
    assert all(any(list(check(row[1])) for row in MISMATCHES) for check in CHECKS)


def test_a_driver_of_cuda_12_serves_a_torch_of_cuda_12() -> None:
    found = replace(CLUSTER, torch_cuda="12.8", driver="535.104.05", transformer_engine_cuda=12, dali_cuda=12)
    assert faults(found) == []


def test_what_stops_training_is_listed_first_and_decides_the_verdict() -> None:
    found = with_part("psutil", Found(), with_part("transformer-engine", Found("2.13.0")))
    assert [fault.stops for fault in faults(found)] == [True, False]
    assert report(found).endswith("training cannot run here")
    assert report(CLUSTER).endswith("training can run here, on 8 GPUs with the te backend")
    assert report(LAPTOP).endswith("training can run here, on the CPU with the torch backend")


def test_a_broken_engine_falls_back_to_the_torch_backend() -> None:
    assert "with the torch backend" in report(with_part("transformer-engine", Found("2.12.0", "undefined symbol")))


def test_the_table_names_every_part_and_every_gpu() -> None:
    text = report(CLUSTER)
    assert all(part.name in text for part in PARTS)
    assert text.count("NVIDIA H100") == 8


# --- looking at this machine -------------------------------------------------------------------------------------------


def test_this_machine_can_run_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_environment() == 0
    assert "training can run here" in capsys.readouterr().out


def test_a_missing_part_makes_the_command_exit_with_93(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "look", lambda: with_part("psutil", Found()))
    assert check_environment() == 93
    assert "psutil is missing" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ImportError("libcudart.so.12"), OSError("undefined symbol"), RuntimeError("no driver")])
def test_a_part_that_breaks_on_import_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    seen = look().part("torch")
    assert seen.version and seen.error == f"{type(error).__name__}: {error}"


def test_a_part_with_a_missing_dependency_is_broken_and_one_that_is_absent_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    seen = environment._look_at(Part("half-there", "a test", "half_there"))
    assert seen.error and "a_module_that_nobody_has" in seen.error
    assert environment._look_at(Part("not-there", "a test", "not_there.inner")) == Found()


def test_a_driver_and_its_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho '580.95.05, NVIDIA H100 80GB HBM3, 81559 MiB'\necho '580.95.05, NVIDIA H100 80GB HBM3, 81559 MiB'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert environment._nvidia_smi() == ("580.95.05", ("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2)
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver.'\nexit 9\n")
    assert environment._nvidia_smi() == (None, ())


def test_pins_are_the_exact_versions_of_a_requirements_file(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# comment\ntorch==2.13.0  # first\ndatatrove[io]==0.10.1\nnumpy>=2\n-r other.txt\nx==1 ; python_version > '3'\n"
    )
    assert read_pins(file) == {"torch": "2.13.0", "datatrove": "0.10.1", "x": "1"}
    assert read_pins(tmp_path / "absent.txt") == {}
