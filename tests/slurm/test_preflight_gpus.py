"""Checks of GPUs and tools: each finds its fault, passes without it, and says "skipped" where it cannot look."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from preflight_parts import CheckedNode

from slurm.preflight import findings, gpus, speed
from slurm.preflight.findings import Fault
from slurm.preflight.gpus import GpuReading
from slurm.preflight.speed import Load

HEALTHY = "55, 1755, 0, 0x0000000000000004"
FROM_DRIVER = ("gpus", "temperature", "throttling", "memory errors", "remapped rows")


def test_healthy_gpus_pass(checked: CheckedNode) -> None:
    checked.gpus(HEALTHY, HEALTHY)
    checked.limits(gpu={"temperature_celsius": 85})
    assert {check: checked.verdict(check) for check in FROM_DRIVER} == dict.fromkeys(FROM_DRIVER, "ok")


@pytest.mark.parametrize(
    ("check", "row", "said"),
    [
        ("temperature", "91, 1755, 0, 0x0", "GPU 1 is too hot"),
        ("throttling", "55, 1755, 0, 0x0000000000000044", "GPU 1: hw_thermal_slowdown"),
        ("memory errors", "55, 1755, 2, 0x0", "GPU 1 had memory errors"),
    ],
)
def test_one_sick_gpu_is_named(checked: CheckedNode, check: str, row: str, said: str) -> None:
    checked.gpus(HEALTHY, row)
    checked.limits(gpu={"temperature_celsius": 85})
    assert checked.verdict(check) == "bad" and said in checked.check(check).sentence
    assert [checked.verdict(other) for other in FROM_DRIVER if other != check] == ["ok"] * 4


def test_a_gpu_that_is_missing_is_counted(checked: CheckedNode) -> None:
    checked.gpus(HEALTHY, HEALTHY)
    checked.change(gpus=8)
    assert checked.verdict("gpus") == "bad" and "2 of 8 GPUs are there" in checked.check("gpus").sentence


@pytest.mark.parametrize(("remapped", "said"), [("1, 0", "waits for a reset"), ("Yes, No", "waits"), ("0, 1", "no spare rows")])
def test_rows_of_memory_that_wait_or_failed_are_found(checked: CheckedNode, remapped: str, said: str) -> None:
    checked.gpus(HEALTHY, remapped=remapped)
    assert checked.verdict("remapped rows") == "bad" and said in checked.check("remapped rows").sentence


def test_a_driver_before_535_is_asked_by_the_old_name(checked: CheckedNode) -> None:
    checked.program("nvidia-smi", f'[[ $1 != *clocks_event* ]] || exit 2; echo "0, H100, 525.1, {HEALTHY}"')
    assert [gpu.throttle for gpu in gpus.read_gpus()] == [4]


def test_a_driver_that_reports_a_lost_gpu_or_nothing_is_bad(checked: CheckedNode) -> None:
    checked.program("nvidia-smi", "echo 'Unable to determine the device handle: GPU is lost'; exit 15")
    checked.change(gpus=8)
    assert checked.verdict("temperature") == "bad"
    assert "nvidia-smi ended with 15 (Unable to determine the device" in checked.check("temperature").sentence
    checked.program("nvidia-smi", "exec /bin/sleep 60")
    with pytest.raises(Fault, match="nvidia-smi gave no answer in 0 s; restart the node"):
        findings.run_tool("nvidia-smi", seconds=0.2)


def test_what_gpus_do_not_tell_is_skipped(checked: CheckedNode) -> None:
    checked.gpus("[N/A], [N/A], [N/A], [Not Supported]", remapped="[N/A], [N/A]")
    assert checked.verdict("temperature") == checked.verdict("memory errors") == "skipped"
    assert checked.verdict("remapped rows") == "ok"
    checked.program("nvidia-smi", "exit 2")
    assert checked.check("remapped rows").sentence == "the GPUs do not tell of remapped rows"


def test_without_gpus_or_tools_all_is_skipped(checked: CheckedNode) -> None:
    everything = (*FROM_DRIVER, "gemm", "memory bandwidth", "clocks", "xids", "dcgm", "gpu-fryer", "fio")
    assert {checked.verdict(check) for check in everything} == {"skipped"}
    checked.limits(tools={"dcgm_level": 1, "fryer_seconds": 10, "fio_iops": 1})
    assert {checked.verdict(check) for check in everything} == {"skipped"}
    assert checked.check("dcgm").sentence == "dcgmi is not installed"
    checked.change(gpus=8)
    assert {checked.verdict(check) for check in FROM_DRIVER} == {"skipped"}
    assert checked.verdict("gemm") == "bad" and "can use no GPU here" in checked.check("gemm").sentence


# --- under load ------------------------------------------------------------------------------------------------------------


def loaded(checked: CheckedNode, clocks: list[float | None], tflops: list[float], copies: list[float]) -> None:
    readings = [GpuReading(number, "H100", "570", 50, clock, 0, 0) for number, clock in enumerate(clocks)]
    checked.change(gpus=len(clocks))
    checked.node.load = Load(readings, "", tflops, copies)


def test_slow_gpus_are_found_at_work(checked: CheckedNode) -> None:
    checked.limits(gpu={"gemm_tflops": 640, "memory_gigabytes_per_second": 2200, "clock_mhz": 1200})
    loaded(checked, [1700, 1650], [730, 720], [2700, 2650])
    checks = ("gemm", "memory bandwidth", "clocks")
    assert [checked.verdict(check) for check in checks] == ["ok"] * 3
    loaded(checked, [1700, 800], [730, 350], [2700, 1100])
    assert [checked.verdict(check) for check in checks] == ["bad"] * 3
    assert checked.check("gemm").sentence == "GPU 1 multiplies at 350 TFLOP/s, the fastest of the node at 730"
    assert "memory of GPU 1 moves 1100 GB/s" in checked.check("memory bandwidth").sentence
    assert "GPU 1 stays slow at full load" in checked.check("clocks").sentence
    loaded(checked, [None, None], [730], [2700])
    assert "torch sees 1 of 2 GPUs" in checked.check("gemm").sentence
    assert checked.check("clocks").sentence == "the GPUs do not tell their clocks"


def test_clocks_of_idle_gpus_say_nothing(checked: CheckedNode) -> None:
    loaded(checked, [345], [], [])
    assert checked.verdict("clocks") == "skipped"


def test_products_and_copies_are_measured_while_the_driver_is_asked(checked: CheckedNode) -> None:
    checked.gpus(HEALTHY)
    checked.limits(gpu={"gemm_size": 64, "gemm_seconds": 0.1, "copy_megabytes": 1, "gemm_tflops": 1e-9})
    checked.change(device="cpu")
    assert checked.verdict("gemm") == checked.verdict("memory bandwidth") == checked.verdict("clocks") == "ok"
    assert checked.node.load.readings and checked.node.load.readings[0].clock == 1755
    checked.limits(gpu={"gemm_size": 64, "gemm_seconds": 0.1, "copy_megabytes": 1, "gemm_tflops": 1e6})
    assert checked.verdict("gemm") == "bad"


def test_a_gpu_that_fails_at_work_is_bad(checked: CheckedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> float:
        raise RuntimeError("CUDA error: uncorrectable ECC error\nmore")

    checked.limits(gpu={"gemm_seconds": 0.01})
    checked.change(device="cpu")
    monkeypatch.setattr(speed, "gemm_rate", fail)
    assert checked.check("gemm").sentence.startswith("a GPU failed (CUDA error: uncorrectable ECC error); reset it")


# --- the kernel log and the tools ------------------------------------------------------------------------------------------


def test_errors_of_hardware_in_the_kernel_log_are_found_and_old_ones_are_not(checked: CheckedNode) -> None:
    def log(number: int, age: timedelta, form: str = "%Y-%m-%dT%H:%M:%S,123456+00:00") -> str:
        return f"{(datetime.now(UTC) - age).strftime(form)} NVRM: Xid (PCI:0000:3b:00): {number}, pid=12, name=python, text"

    checked.change(gpus=8)
    checked.program("dmesg", f"echo '{log(31, timedelta(0))}'; echo '{log(79, timedelta(hours=30))}'")
    assert checked.verdict("xids") == "ok"
    checked.program("dmesg", f"echo '{log(79, timedelta(hours=2))}'")
    assert checked.verdict("xids") == "bad" and "Xid 79 (GPU has fallen off the bus)" in checked.check("xids").sentence
    checked.program("dmesg", "exit 1")
    assert checked.check("xids").sentence == "the kernel log cannot be read without privileges here"
    checked.program("journalctl", f"echo '{log(64, timedelta(0), '%Y-%m-%dT%H:%M:%S+0000')}'")
    assert checked.verdict("xids") == "bad"
    assert gpus.harmful_xids("NVRM: Xid (PCI:0000:3b:00): 119, no time before it", datetime.now(UTC) - timedelta(1)) == {119}


def test_dcgmi_is_believed(checked: CheckedNode) -> None:
    checked.limits(tools={"dcgm_level": 2})
    checked.program("dcgmi", '[[ "$*" == "diag -r 2" ]] && echo "| Memory | Pass - All |"')
    assert checked.verdict("dcgm") == "ok"
    checked.program("dcgmi", 'echo "| PCIe | Fail - GPU: 3 |"')
    assert checked.check("dcgm").sentence.startswith("dcgmi diag -r 2: PCIe Fail - GPU: 3")
    checked.program("dcgmi", "exit 226")
    assert checked.verdict("dcgm") == "bad"
    checked.program("dcgmi", 'echo "Error: unable to establish a connection to host engine. Unable to connect"; exit 1')
    assert checked.verdict("dcgm") == "skipped"


def test_gpu_fryer_is_believed(checked: CheckedNode) -> None:
    checked.limits(tools={"fryer_seconds": 10})
    checked.program("gpu-fryer", '[[ $1 == 10 ]] && echo "All GPUs seem healthy"')
    assert checked.verdict("gpu-fryer") == "ok"
    checked.program("gpu-fryer", 'echo "GPU 2 is throttled. Check the throttling reasons"; echo "Error: Some"; exit 1')
    assert checked.check("gpu-fryer").sentence.startswith("gpu-fryer: GPU 2 is throttled.")


def test_fio_is_judged(checked: CheckedNode, tmp_path: Path) -> None:
    checked.limits(tools={"fio_iops": 100_000})
    told = json.dumps({"jobs": [{"read": {"iops": 337_000.5}}]})
    checked.program("fio", f"echo note; echo '{told}'")
    assert checked.verdict("fio") == "ok"
    checked.program("fio", f"echo '{told.replace('337000.5', '730')}'")
    assert checked.verdict("fio") == "bad" and "reads slowly" in checked.check("fio").sentence
    checked.program("fio", "echo 'no libaio' >&2; exit 1")
    assert "ended with 1 (no libaio)" in checked.check("fio").sentence
    checked.change(scratch=None)
    assert checked.verdict("fio") == "skipped"


def test_facts_are_those_of_the_driver_and_the_adapters(checked: CheckedNode, tmp_path: Path) -> None:
    for number, state in enumerate(("4: ACTIVE", "4: ACTIVE", "1: DOWN")):
        port = tmp_path / "infiniband" / f"mlx5_{number}" / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    checked.gpus(HEALTHY, HEALTHY)
    assert gpus.facts(checked.node, tmp_path / "infiniband") == {
        "gpu": "NVIDIA H100 80GB HBM3",
        "driver": "570.86.15",
        "cuda": "12.8",
        "adapters": "2 of 3 ports active, 400 Gb/sec (4X NDR)",
    }
    (checked.bin / "nvidia-smi").unlink()
    checked.change(gpus=0)
    assert gpus.facts(checked.node, tmp_path / "none") == {}
