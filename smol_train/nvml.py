"""What NVIDIA's management library says of one GPU. The library is passed in: the module pynvml, or what answers like it."""

from collections.abc import Callable
from typing import Any

THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
"""Bits of nvmlClocksEventReasons that mean that a clock is held down. Left out are those that mean no harm: an idle GPU, clocks
that someone set, clocks kept equal (NVML API reference, section 'Clocks Event Reasons')."""

READINGS: dict[str, Callable[[Any, Any], float]] = {
    "device/utilization": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "device/temperature_celsius": lambda nvml, gpu: nvml.nvmlDeviceGetTemperatureV(gpu, nvml.NVML_TEMPERATURE_GPU),
    "device/power_watts": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "device/sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "device/ecc_corrected": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(
        gpu, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_VOLATILE_ECC
    ),
    "device/ecc_uncorrected": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(
        gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    ),
    "device/throttle_reasons": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
}
"""Metric -> how it is read. ECC errors are counted since the driver was loaded."""


def throttle_names(reasons: int) -> list[str]:
    """Names of the harmful bits of a throttle mask."""
    return [name for bit, name in THROTTLE_REASONS.items() if reasons & bit]


class Gpu:
    """One GPU. Raises the library's NVMLError where there is no driver or no such GPU."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        """`uuid` as torch gives it: what CUDA_VISIBLE_DEVICES shows is numbered otherwise than what NVML sees."""
        self.nvml = nvml
        nvml.nvmlInit()
        self.handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        self.known = dict(READINGS)

    def read(self) -> dict[str, float]:
        """All that this GPU tells; what it does not support is not asked for again. Raises NVMLError when it has failed."""
        values = {}
        for name, reading in list(self.known.items()):
            try:
                values[name] = float(reading(self.nvml, self.handle))
            except (self.nvml.NVMLError_NotSupported, self.nvml.NVMLError_NoPermission):
                del self.known[name]
        if "device/throttle_reasons" in values:
            reasons = int(values["device/throttle_reasons"])
            values |= {f"device/throttle/{name}": float(bool(reasons & bit)) for bit, name in THROTTLE_REASONS.items()}
        return values

    def close(self) -> None:
        self.nvml.nvmlShutdown()
