"""Tools of others, where they are installed: NVIDIA's DCGM, Hugging Face's gpu-fryer, and fio."""

import json

from slurm.preflight.findings import Absent, Fault, Finding, Node, judged, run_tool

DCGM_SECONDS = {1: 300.0, 2: 900.0, 3: 3600.0, 4: 7200.0}
"""What `dcgmi diag` of a level may take: NVIDIA says seconds, 2, 30 and 90 minutes."""
FRYER_EXTRA_SECONDS = 120.0
"""What gpu-fryer takes besides, for filling the GPUs' memory."""
FIO_SECONDS = 10


def check_dcgm(node: Node) -> Finding:
    level = node.limits.tools.dcgm_level
    if level is None:
        raise Absent("tools.dcgm_level is not set")
    result = run_tool("dcgmi", "diag", "-r", str(level), seconds=DCGM_SECONDS.get(level, DCGM_SECONDS[4]))
    said = result.stdout + result.stderr
    if "host engine" in said.lower() and "connect" in said.lower():
        raise Absent("dcgmi cannot reach nv-hostengine, which is not running here")
    failed = [" ".join(line.replace("|", " ").split()) for line in said.splitlines() if "Fail" in line]
    if result.returncode == 0 and not failed:
        return Finding("ok", f"level {level} passed", "passed")
    shown = failed[0] if failed else f"exit code {result.returncode}"
    return Finding("bad", shown[:40], "passed", f"dcgmi diag -r {level}: {shown}; NVIDIA's table says what to do about it")


def check_fryer(node: Node) -> Finding:
    seconds = node.limits.tools.fryer_seconds
    if seconds is None:
        raise Absent("tools.fryer_seconds is not set")
    result = run_tool("gpu-fryer", str(seconds), seconds=seconds + FRYER_EXTRA_SECONDS)
    if result.returncode == 0:
        return Finding("ok", "healthy", "healthy")
    lines = (result.stdout + result.stderr).strip().splitlines() or [f"exit code {result.returncode}"]
    reasons = [line for line in lines if "throttl" in line.lower() or "not performing" in line.lower()] or lines[-1:]
    return Finding("bad", "not healthy", "healthy", f"gpu-fryer: {reasons[-1].strip()}; look at cooling and power supply")


def check_fio(node: Node) -> Finding:
    least = node.limits.tools.fio_iops
    if least is None:
        raise Absent("tools.fio_iops is not set")
    if node.scratch is None:
        raise Absent("the node has no disk of its own (SMOL_LOCAL_DATA is empty)")
    job = ["--rw=randread", "--bs=4k", "--direct=1", "--iodepth=64", "--ioengine=libaio", "--numjobs=8", "--group_reporting"]
    size = ["--size=1g", "--unlink=1", f"--runtime={FIO_SECONDS}", "--time_based", "--output-format=json"]
    node.scratch.mkdir(parents=True, exist_ok=True)
    result = run_tool("fio", "--name=preflight", f"--directory={node.scratch}", *job, *size)
    if result.returncode:
        raise Fault(f"fio in {node.scratch} ended with {result.returncode} ({result.stderr.strip()[:200]}); look at the disk")
    iops = float(json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]["read"]["iops"])
    return judged(iops, "IOPS", least=least, fault=f"{node.scratch} reads slowly; look at its disks and at what else uses them")
