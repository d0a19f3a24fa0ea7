"""Readings of a GPU, from an object that answers like the module pynvml."""

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from smol_train.callbacks.devices import DeviceMetrics
from smol_train.nvml import Gpu, throttle_names


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


class NoPermission(NVMLError):
    pass


class FakeNvml:
    """One H100 under load; `lost` makes it fall off the bus."""

    NVMLError, NVMLError_NotSupported, NVMLError_NoPermission = NVMLError, NotSupported, NoPermission
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0

    def __init__(self, reasons: int = 0, has_ecc: bool = True) -> None:
        self.reasons, self.has_ecc = reasons, has_ecc
        self.lost = self.closed = False
        self.ecc_calls = 0
        self.asked = threading.Event()

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        self.closed = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1234-abcd":
            raise NVMLError("Not Found")
        return "the GPU"

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> Any:
        self.asked.set()
        if self.lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetTemperatureV(self, gpu: str, sensor: int) -> int:
        return 71

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 689_500

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:
        return {1: 1755}[kind]

    def nvmlDeviceGetTotalEccErrors(self, gpu: str, error: int, counter: int) -> int:
        self.ecc_calls += 1
        if not self.has_ecc:
            raise NotSupported("Not Supported")
        return {0: 5, 1: 2}[error]

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: str) -> int:
        return self.reasons


def test_readings_are_in_the_units_of_their_names() -> None:
    assert Gpu(FakeNvml(reasons=0x01 | 0x04 | 0x40), "1234-abcd").read() == {
        "device/utilization": 0.97,
        "device/temperature_celsius": 71,
        "device/power_watts": 689.5,
        "device/sm_clock_mhz": 1755,
        "device/ecc_corrected": 5,
        "device/ecc_uncorrected": 2,
        "device/throttle_reasons": 0x45,
        "device/throttle/sw_power_cap": 1,
        "device/throttle/hw_slowdown": 0,
        "device/throttle/sw_thermal_slowdown": 0,
        "device/throttle/hw_thermal_slowdown": 1,
        "device/throttle/hw_power_brake": 0,
    }


def test_an_idle_gpu_and_set_clocks_are_no_harm() -> None:
    assert throttle_names(0x01 | 0x02 | 0x10 | 0x100) == []
    assert throttle_names(0xFF) == [
        "sw_power_cap",
        "hw_slowdown",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake",
    ]


def test_our_bits_and_functions_are_the_librarys() -> None:
    import pynvml

    bits = {"SwPowerCap": 0x04, "HwSlowdown": 0x08, "SwThermalSlowdown": 0x20, "HwThermalSlowdown": 0x40}
    for name, bit in {**bits, "HwPowerBrakeSlowdown": 0x80}.items():
        assert getattr(pynvml, f"nvmlClocksEventReason{name}") == bit
    for name in dir(FakeNvml):
        assert not name.lower().startswith("nvml") or hasattr(pynvml, name), name


def test_what_a_gpu_does_not_support_is_left_out_and_not_asked_for_again() -> None:
    nvml = FakeNvml(has_ecc=False)
    gpu = Gpu(nvml, "GPU-1234-abcd")
    assert not any("ecc" in name for name in gpu.read() | gpu.read())
    assert nvml.ecc_calls == 2


def test_a_thread_reads_and_a_step_takes_what_is_there() -> None:
    nvml = FakeNvml()
    callback = DeviceMetrics(seconds=0.01)
    callback.start(nvml, "1234-abcd")
    nvml.reasons = 0x40
    for _ in range(2):  # the second reading begins after the first one, with the new reasons, has ended
        nvml.asked.clear()
        assert nvml.asked.wait(10)
    metrics: dict[str, float] = {}
    callback.on_step_end(SimpleNamespace(), metrics)  # type: ignore[arg-type]
    callback.close()
    assert metrics["device/throttle/hw_thermal_slowdown"] == 1 and nvml.closed


def test_a_gpu_that_is_lost_ends_the_readings_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml()
    callback = DeviceMetrics(seconds=0.01)
    callback.start(nvml, "1234-abcd")
    nvml.lost = True
    assert callback.thread
    callback.thread.join(10)
    assert callback.latest == {} and [record.getMessage() for record in caplog.records] == [
        "device metrics end here: NVML says GPU is lost"
    ]


def test_without_a_driver_there_is_one_line_and_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    import pynvml

    callback = DeviceMetrics()
    with caplog.at_level(logging.WARNING):
        callback.start(pynvml, "1234-abcd")
    if callback.thread:
        pytest.skip("this host has a driver")
    assert len(caplog.records) == 1 and "no device metrics: NVML says" in caplog.text


def test_a_run_on_the_cpu_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    import torch

    callback = DeviceMetrics()
    callback.on_fit_start(SimpleNamespace(ranks=SimpleNamespace(device=torch.device("cpu"))))  # type: ignore[arg-type]
    metrics: dict[str, float] = {}
    callback.on_step_end(SimpleNamespace(), metrics)  # type: ignore[arg-type]
    callback.close()
    assert metrics == {} and not caplog.records
