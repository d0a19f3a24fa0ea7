"""All checks of one node, one by one. Each tells one thing; a new one is a function and a line here."""

import sys
from pathlib import Path

from slurm.preflight import access, gpus, inputs, speed, storage, tools
from slurm.preflight.findings import Absent, Check, Fault, Finding, Node, Report

CHECKS: dict[str, Check] = {
    "layout": inputs.check_layout,
    "data": inputs.check_data,
    "space": storage.check_space,
    "inodes": storage.check_inodes,
    "s3": access.check_s3,
    "hub": access.check_hub,
    "gpus": gpus.check_count,
    "gemm": speed.check_gemm,
    "memory bandwidth": speed.check_memory_bandwidth,
    "temperature": gpus.check_temperature,
    "clocks": gpus.check_clocks,
    "throttling": gpus.check_throttling,
    "memory errors": gpus.check_memory_errors,
    "remapped rows": gpus.check_remapped_rows,
    "xids": gpus.check_xids,
    "dcgm": tools.check_dcgm,
    "gpu-fryer": tools.check_fryer,
    "scratch": storage.check_scratch,
    "shared": storage.check_shared,
    "fio": tools.check_fio,
}


def look_at(node: Node, out: Path, checks: dict[str, Check] = CHECKS) -> Report:
    """Run all checks, and leave their findings in OUT/NODE.json."""
    report = Report(node.name)
    for name, check in checks.items():
        report.running = name
        report.write(out)
        report.findings[name] = run_check(check, node)
        told = report.findings[name]
        if told.verdict in ("bad", "stop"):
            print(f"{node.name}: {name}: {told.sentence}", file=sys.stderr, flush=True)
    report.facts, report.running = gpus.facts(node), None
    report.write(out)
    return report


def run_check(check: Check, node: Node) -> Finding:
    """What the check found, also where it could not look or broke."""
    try:
        return check(node)
    except Absent as absent:
        return Finding("skipped", sentence=str(absent))
    except Fault as fault:
        return Finding("bad", sentence=str(fault))
    except Exception as error:  # unforeseen: on one node it is the node's, on most of them verdict.py stops the job
        return Finding("bad", sentence=f"the check broke ({type(error).__name__}: {error})")
