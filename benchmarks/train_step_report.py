"""The table of benchmarks.train_step, as Markdown."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.common import cpu_model, spread, versions
from benchmarks.train_step_job import Measurement
from smol_train.config import RunConfig

PACKAGES = ("torch", "megatron-core", "transformers", "transformer-engine", "nvidia-dali-cuda130")

PARTS: dict[str, Callable[[Measurement], list[float]]] = {
    "step": lambda side: side.wall,
    "data wait": lambda side: side.data_wait,
    "forward and backward": lambda side: side.forward_backward,
    "optimizer (with clipping)": lambda side: side.optimizer,
    "collectives, in the two above": lambda side: side.collectives,
    "callbacks and the loop": lambda side: side.around,
}


@dataclass(frozen=True)
class Report:
    """All that a table is made from."""

    config: RunConfig
    config_name: str
    arguments: Sequence[str]
    threads: int
    warmup: int
    steps: int
    load_average: float
    ours: list[Measurement]
    peers: list[Measurement]

    @property
    def measured_peers(self) -> list[Measurement]:
        return [peer for peer in self.peers if not peer.skipped]

    def rates(self, side: list[Measurement]) -> list[float]:
        """Tokens per second of each repeat."""
        return [self.config.tokens_per_step * len(one.wall) / sum(one.wall) for one in side]


def render(report: Report) -> str:
    """The whole file."""
    return "\n".join([*_head(report), *_table(report), "", *_ratio(report), "", *_losses(report), "", *_notes(report), ""])


def _head(report: Report) -> list[str]:
    config = report.config
    where = report.ours[0].device or f"{cpu_model()}, {report.threads} threads"
    return [
        "# Training step: tokens per second",
        "",
        f"    python -m benchmarks.train_step {shlex.join(report.arguments)}",
        "",
        f"- Machine: {where}; load average at the start {report.load_average:.1f}.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Configuration: {report.config_name}: {config.model.parameters:,} parameters, sequence length "
        f"{config.data.sequence_length:,}, {config.tokens_per_step:,} tokens a step in micro-batches of "
        f"{config.train.micro_batch_size} windows, precision {config.train.precision}.",
        f"- Measured: {len(report.ours)} repeats, the sides in turns, each in a fresh process; {report.steps} steps timed "
        f"after {report.warmup} of warm-up. Medians over the repeats, with the lowest and the highest.",
        "",
    ]


def _table(report: Report) -> list[str]:
    sides = [side for side in (report.ours, report.measured_peers) if side]
    rows = [
        ["", *(side[0].name for side in sides)],
        ["---", *("---:" for _ in sides)],
        ["**tokens/s**", *(f"**{spread(report.rates(side), '{:,.0f}')}**" for side in sides)],
    ]
    for part, seconds in PARTS.items():
        rows.append([f"{part}, s", *(spread([sum(seconds(one)) / len(one.wall) for one in side], "{:.4f}") for side in sides)])
    rows.append(["outside forward, backward, optimizer", *(_outside(side) for side in sides)])
    rows.append(["model FLOPs utilization", *(_utilization(report, side) for side in sides)])
    if report.ours[0].peak_memory_gib is not None:
        rows.append(["peak GPU memory, GiB", *(f"{median(one.peak_memory_gib or 0.0 for one in side):.1f}" for side in sides)])
    last = len(report.ours[0].losses)
    rows.append(["loss of step 1", *(f"{side[0].losses[0]:.5f}" for side in sides)])
    rows.append([f"loss of step {last}", *(f"{side[0].losses[-1]:.5f}" for side in sides)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _ratio(report: Report) -> list[str]:
    if not report.measured_peers:
        return []
    ours, peers = report.rates(report.ours), report.rates(report.measured_peers)
    pairs = [mine / theirs for mine, theirs in zip(ours, peers, strict=True)]
    return [
        f"Ratio ours / peer: **{median(ours) / median(peers):.3f}** (of the medians; neighbouring pairs {min(pairs):.3f} to "
        f"{max(pairs):.3f})."
    ]


def _losses(report: Report) -> list[str]:
    if not report.measured_peers:
        return []
    ours, peers = report.ours[0].losses, report.measured_peers[0].losses
    return [
        f"Both start from the same weights and take the same windows in the same order: their losses differ by "
        f"{abs(ours[0] - peers[0]):.1e} at step 1 and by {abs(ours[-1] - peers[-1]):.1e} at step {len(ours)}."
    ]


def _notes(report: Report) -> list[str]:
    bf16 = report.config.train.precision == "bf16"
    notes = [
        "- Ours: the whole Trainer in one process, with its loader and all its telemetry: every step's metrics to "
        "metrics.jsonl and TensorBoard, progress, trigger files; every 10 steps, ten times as often as by default, norms of "
        "the weights and the comparison of ranks; Prometheus's file every 10 s. No evaluation, no checkpoint. "
        + ("bf16 parameters, fp32 master weights, fp32 gradient accumulation." if bf16 else "fp32 throughout."),
        "- A step's seconds are wall clock from end to end. Outside forward, backward and optimizer are data wait, collectives "
        "(gradient reduction and sum of the losses; of one process), callbacks and the loop.",
        "- Model FLOPs count attention over the full S x S square on both sides (smol_model/config.py, flops_per_token).",
    ]
    if report.measured_peers:
        notes.append(
            "- Peer: "
            + ("fp32 parameters under bf16 autocast" if bf16 else "fp32 throughout")
            + "; the same micro-batches, clipping, weight decay and learning rates, fused AdamW. It trains on [b, S] rows "
            "without document isolation: given position ids, transformers isolates documents on SDPA with an explicit mask, "
            "which is slower than its causal path. So its attention does more work (the full causal S x S) and "
            "its losses drift from ours; with train.precision=fp32 data.document_mask=false they agree to rounding at first."
        )
    notes += [f"- Peer: {peer.skipped}." for peer in report.peers[:1] if peer.skipped]
    return notes


def _outside(side: list[Measurement]) -> str:
    return spread([one.outside for one in side], "{:.2%}")


def _utilization(report: Report, side: list[Measurement]) -> str:
    if (peak := report.ours[0].peak_tflops) is None:
        return "peak not known"
    flops = report.config.model.flops_per_token(report.config.data.sequence_length)
    return spread([rate * flops / (peak * 1e12) for rate in report.rates(side)], "{:.1%}")
