"""What the driver (nvidia-smi) and the kernel log say of a node's GPUs: number, heat, clocks, throttling, memory errors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from slurm.preflight.findings import Absent, Fault, Finding, Node, judged, run_tool
from smol_train.nvml import throttle_names

FIELDS = {
    "index": "index",
    "name": "name",
    "driver": "driver_version",
    "temperature": "temperature.gpu",
    "clock": "clocks.sm",
    "uncorrected": "ecc.errors.uncorrected.volatile.total",
    "throttle": "clocks_event_reasons.active",
}
"""Of GpuReading: how nvidia-smi --query-gpu calls it."""
OLD_NAMES = {"throttle": "clocks_throttle_reasons.active"}
"""Before driver 535."""

UNDER_LOAD = {"sw_power_cap"}
"""Throttling that every GPU shows while it multiplies matrices: it runs at its power limit."""

HARMFUL_XIDS = {
    48: "uncorrectable memory error",
    62: "internal micro-controller halted",
    64: "memory row could not be remapped",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "many corrected memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GPU's system processor gives no answer",
    120: "GPU's system processor failed",
    140: "unrecovered memory error",
}
"""The driver's errors that point to hardware, which a reset mends or nothing does (NVIDIA, "Xid Errors", catalog). Left out are
those that faulty programs cause, as 13, 31, 43 and 45, and 63, which the check of remapped rows sees until it is mended."""


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment; None: it does not tell."""

    index: int
    name: str
    driver: str
    temperature: float | None
    clock: float | None
    uncorrected: float | None
    throttle: int


def read_gpus() -> list[GpuReading]:
    """All GPUs of this node. Raises Absent without nvidia-smi, Fault where a GPU does not answer."""
    result, names = None, FIELDS
    for names in (FIELDS, FIELDS | OLD_NAMES):
        result = run_tool("nvidia-smi", f"--query-gpu={','.join(names.values())}", "--format=csv,noheader,nounits")
        if result.returncode == 0:
            break
    assert result is not None
    if result.returncode:
        said = " ".join((result.stdout or result.stderr).split())
        raise Fault(f"nvidia-smi ended with {result.returncode} ({said[:200]}); reset the GPU or restart the node")
    rows = [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines() if line.strip()]
    return [_reading(dict(zip(names, row, strict=True))) for row in rows]


def _reading(row: Mapping[str, str]) -> GpuReading:
    return GpuReading(
        index=int(row["index"]),
        name=row["name"],
        driver=row["driver"],
        temperature=_number(row["temperature"]),
        clock=_number(row["clock"]),
        uncorrected=_number(row["uncorrected"]),
        throttle=int(row["throttle"], 16) if row["throttle"].startswith("0x") else 0,
    )


def _number(text: str) -> float | None:
    """None for [N/A], [Not Supported] and the like."""
    return float(text) if re.fullmatch(r"[\d.]+", text) else None


# --- checks ----------------------------------------------------------------------------------------------------------------


def _readings(node: Node) -> list[GpuReading]:
    """Of the GPUs under load. Raises Absent without nvidia-smi, Fault where it gave no answer."""
    if node.load.silence:
        raise Fault(node.load.silence)
    if node.load.readings is None:
        raise Absent("nvidia-smi is not installed")
    return node.load.readings


def check_count(node: Node) -> Finding:
    found = len(_readings(node))
    sentence = f"{found} of {node.gpus} GPUs are there; look at dmesg for one that fell off the bus, and restart the node"
    return judged(found, "GPUs", least=node.gpus, fault=sentence)


def check_temperature(node: Node) -> Finding:
    hottest = max(_readings(node), key=lambda gpu: gpu.temperature or 0)
    if hottest.temperature is None:
        raise Absent("the GPUs do not tell their temperature")
    sentence = f"GPU {hottest.index} is too hot; look at the node's fans and at its neighbours in the rack"
    return judged(hottest.temperature, f"°C (GPU {hottest.index})", most=node.limits.gpu.temperature_celsius, fault=sentence)


def check_clocks(node: Node) -> Finding:
    readings = _readings(node)
    if not node.load.tflops:
        raise Absent("clocks are low while GPUs idle, and nothing was multiplied")
    slowest = min(readings, key=lambda gpu: gpu.clock or 0)
    if slowest.clock is None:
        raise Absent("the GPUs do not tell their clocks")
    sentence = f"GPU {slowest.index} stays slow at full load; look for limits that someone set (nvidia-smi -q -d CLOCK,POWER)"
    return judged(slowest.clock, f"MHz (GPU {slowest.index})", least=node.limits.gpu.clock_mhz, fault=sentence)


def check_throttling(node: Node) -> Finding:
    held = {gpu.index: sorted(set(throttle_names(gpu.throttle)) - UNDER_LOAD) for gpu in _readings(node)}
    if not any(held.values()):
        return Finding("ok", "none", "none")
    shown = "; ".join(f"GPU {index}: {', '.join(names)}" for index, names in held.items() if names)
    return Finding("bad", shown, "none", f"clocks are held down ({shown}); look at cooling and power supply")


def check_memory_errors(node: Node) -> Finding:
    counts = {gpu.index: gpu.uncorrected for gpu in _readings(node) if gpu.uncorrected is not None}
    if not counts:
        raise Absent("the GPUs count no memory errors: ECC is off")
    worst = max(counts, key=lambda index: counts[index])
    sentence = f"GPU {worst} had memory errors that could not be corrected since its driver was loaded; reset it"
    return judged(counts[worst], "uncorrected", most=0, fault=sentence)


def check_remapped_rows(node: Node) -> Finding:
    """Rows of memory that are to be replaced by spare ones at the next reset, or could not be."""
    query = "--query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure"
    result = run_tool("nvidia-smi", query, "--format=csv,noheader,nounits")
    if result.returncode:
        raise Absent("the GPUs do not tell of remapped rows")
    rows = [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines() if line.strip()]
    pending = [bus for bus, waits, _ in rows if waits not in ("0", "No") and not waits.startswith("[")]
    failed = [bus for bus, _, failure in rows if failure not in ("0", "No") and not failure.startswith("[")]
    if failed:
        return Finding("bad", f"{len(failed)} failed", "none", f"memory of GPU {failed[0]} has no spare rows left; replace it")
    if pending:
        return Finding("bad", f"{len(pending)} pending", "none", f"memory of GPU {pending[0]} waits for a reset to be mended")
    return Finding("ok", "none pending", "none")


def check_xids(node: Node) -> Finding:
    if not node.gpus:
        raise Absent("the job asks for no GPUs")
    found = harmful_xids(_kernel_log(), datetime.now(UTC) - timedelta(hours=node.limits.gpu.xid_hours))
    if not found:
        return Finding("ok", "none", "none")
    shown = ", ".join(f"{number} ({HARMFUL_XIDS[number]})" for number in sorted(found))
    return Finding("bad", f"Xid {shown}", "none", f"the kernel log has Xid {shown}; reset the GPU, or replace it")


def harmful_xids(log: str, since: datetime) -> set[int]:
    """Numbers of HARMFUL_XIDS in lines of `dmesg --time-format iso` or `journalctl -o short-iso` that are no older."""
    found = set()
    for line in log.splitlines():
        match = re.search(r"NVRM: Xid \([^)]*\): (\d+)", line)
        if match and int(match[1]) in HARMFUL_XIDS and _time(line) >= since:
            found.add(int(match[1]))
    return found


def _time(line: str) -> datetime:
    """At the line's beginning; of a line without one, now."""
    try:
        return datetime.fromisoformat(line.partition(" ")[0]).astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)


def _kernel_log() -> str:
    for command in (("dmesg", "--time-format", "iso"), ("journalctl", "--dmesg", "--output=short-iso", "--no-pager")):
        try:
            result = run_tool(*command)
        except Absent:
            continue
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout
    raise Absent("the kernel log cannot be read without privileges here")


# --- facts that must be the same on all nodes ------------------------------------------------------------------------------


def facts(node: Node, infiniband: Path = Path("/sys/class/infiniband")) -> dict[str, str]:
    """GPU, driver, CUDA version of the driver, and network adapters with their state, as far as they can be told."""
    told = {}
    try:
        readings = _readings(node)
    except (Absent, Fault):
        readings = []
    if readings:
        told["gpu"] = ", ".join(sorted({gpu.name for gpu in readings}))
        told["driver"] = readings[0].driver
        if version := re.search(r"CUDA Version:\s*([\d.]+)", run_tool("nvidia-smi").stdout):
            told["cuda"] = version[1]
    ports = sorted(infiniband.glob("*/ports/*"))
    if ports:
        active = [port for port in ports if "ACTIVE" in _text(port / "state")]
        rates = sorted({_text(port / "rate") for port in active})
        told["adapters"] = f"{len(active)} of {len(ports)} ports active, {', '.join(rates)}"
    return told


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8").strip() if path.is_file() else ""
