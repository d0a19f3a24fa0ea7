"""`throughput`: tokens per second of each part alone, and which part holds the whole back.

    synthetic   the trainer's step on one batch again and again, no data and no callbacks: compute and communication
    loader      the input pipeline alone, from step 0 and from step FAR: a long run must start and go on as fast
    full        the trainer with data and with the callbacks that every run has

Shares of the full step: data is what the step waits for batches, callbacks what passes between two steps; the most
of any rank, since all wait for the slowest. Communication is what torch's profiler sees of it in the synthetic step while
no computation runs (an idle pipeline stage waits in a receive, so the bubble is part of it); compute is the rest. The check
fails when data or callbacks take more than their limit: both belong behind the computation. Saving and evaluating are not
timed, and the first WARMUP steps are left out.
"""

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smol_train.callbacks.base import Callback
from smol_train.config import RunConfig
from smol_train.sections.watch import AlertsConfig
from smol_train.selftests.base import Setting, Verdict, verdict
from smol_train.selftests.layouts import configured
from smol_train.short_run import shortened
from smol_train.timing import Interval, StepTimer, batches_per_second, uncovered

if TYPE_CHECKING:
    from smol_train.parallel import Ranks
    from smol_train.trainer import Trainer

FAR = 10_000_000
"""Step of the far horizon: three times SmolLM3's run."""
WARMUP, PROFILED = 3, 3
LIMITS = {"data": 0.1, "callbacks": 0.1}
"""Largest shares of a step."""
SLOW_START = 10.0
"""A first batch far out may take so many times as long as at step 0, and a second."""

Figures = dict[str, float]


def check(setting: Setting) -> Verdict:
    own = configured(setting.config, setting.world_size)
    steps = WARMUP + setting.steps
    config = shortened(own.config, steps, setting.folder / "run")
    synthetic = setting.crew.run(
        timed_steps, own.world_size, config=shortened(own.config, steps + PROFILED, setting.folder / "run"), synthetic=True
    )
    near, far = (
        setting.crew.run(loader_alone, own.world_size, config=config, start_step=start, steps=setting.steps)
        for start in (0, FAR)
    )
    full = setting.crew.run(timed_steps, own.world_size, config=config, synthetic=False)
    return judge(own.config.tokens_per_step, synthetic, near, far, full)


def judge(
    tokens: int, synthetic: list[Figures], near: list[dict[str, Any]], far: list[dict[str, Any]], full: list[Figures]
) -> Verdict:
    """The verdict on figures of all ranks; `tokens` of a step."""
    shares = step_shares(synthetic, full)
    rates = {"synthetic": tokens / _slowest(synthetic, "wall"), "full": tokens / _slowest(full, "wall")}
    rates |= {"loader": _loader_rate(near), f"loader at step {FAR:,}": _loader_rate(far)}
    over = [layer for layer, limit in LIMITS.items() if shares[layer] > limit]
    faults = [f"{layer} is slow: {shares[layer]:.0%} of a step; at most {LIMITS[layer]:.0%}" for layer in over]
    first, first_far = (max(rank["first_batch_seconds"] for rank in ranks) for ranks in (near, far))
    if first_far > SLOW_START * first + 1:
        faults.append(f"data is slow to start: the first batch at step {FAR:,} took {first_far:.1f} s, at step 0 {first:.1f} s")
    slowest = max(over or ["compute", "communication"], key=lambda layer: shares[layer])
    summary = f"{rates['full']:,.0f} tokens/s; most of a step is {slowest}, {shares[slowest]:.0%}"
    details = [f"{name}: {rate:,.0f} tokens/s" for name, rate in rates.items()]
    details.append(f"first batch after {first:.2f} s, at step {FAR:,} after {first_far:.2f} s")
    details.append("a step: " + ", ".join(f"{layer} {share:.0%}" for layer, share in shares.items()))
    return verdict(faults, summary, details, tokens_per_second=rates, shares=shares, slowest=slowest)


def step_shares(synthetic: list[Figures], full: list[Figures]) -> dict[str, float]:
    """Shares of the full step by layer; they sum to 1."""
    wall = _slowest(full, "wall")
    data, callbacks = _slowest(full, "data_wait") / wall, _slowest(full, "outside") / wall
    rest = max(0.0, 1 - data - callbacks)
    communication = rest * max(rank["communication_share"] for rank in synthetic)
    return {"compute": rest - communication, "communication": communication, "data": data, "callbacks": callbacks}


def _slowest(ranks: list[Figures], name: str) -> float:
    return max(rank[name] for rank in ranks)


def _loader_rate(ranks: list[dict[str, Any]]) -> float:
    """Over the data-parallel ranks, each counted once, at the pace of its slowest."""
    by_place: dict[int, float] = {}
    for rank in ranks:
        by_place[rank["data_rank"]] = min(rank["tokens_per_second"], by_place.get(rank["data_rank"], float("inf")))
    return sum(by_place.values())


# --- jobs ----------------------------------------------------------------------------------------------------------------


def timed_steps(config: RunConfig, synthetic: bool) -> Figures:
    """A job: medians of this rank's steps; with `synthetic` also the share of communication, from PROFILED more steps."""
    from smol_train.determinism import deterministic
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    with deterministic(config.train.deterministic), process_groups(config.parallel, config.train.seed) as ranks:
        profile = Profile(config.train_steps - PROFILED)
        timer = StepTimer(WARMUP, profile.first - WARMUP if synthetic else None)  # profiled steps are slower
        callbacks = [Synthetic(), profile] if synthetic else _every_step(config, ranks)
        Trainer(config, ranks, [*callbacks, timer]).fit()
        return {**timer.medians(), **({"communication_share": profile.share} if synthetic else {})}


def _every_step(config: RunConfig, ranks: "Ranks") -> list[Callback]:
    """Those of pretrain_smol.py that do something at every step, or as often as the configuration says; nobody is alerted."""
    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.devices import DeviceMetrics
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.callbacks.noise_scale import GradientNoiseScale
    from smol_train.callbacks.parameter_norms import ParameterNorms
    from smol_train.callbacks.rank_report import RankReport
    from smol_train.callbacks.signals import StopOnSignal, TriggerFiles

    devices, nobody = DeviceMetrics(), Alerts(AlertsConfig(), Path(config.train.output_dir), ranks.is_main)
    report = RankReport(config.logging, nobody, devices)
    return [StopOnSignal(), TriggerFiles(), GradientNoiseScale(), ParameterNorms(), devices, report, MetricsWriter()]


class Synthetic(Callback):
    """The first batch, over and over."""

    def on_fit_start(self, trainer: "Trainer") -> None:
        trainer.batches.inner = itertools.repeat(next(trainer.batches.inner))


class Profile(Callback):
    """Records the steps after `first`; `share` is that of their time in which this rank only communicates."""

    def __init__(self, first: int) -> None:
        self.first, self.share, self.started = first, 0.0, 0.0
        self.profiler: Any = None

    def on_step_start(self, trainer: "Trainer") -> None:
        if trainer.state.step == self.first:
            import torch

            on_gpu = trainer.ranks.device.type == "cuda"
            activity = torch.profiler.ProfilerActivity
            self.profiler = torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU])
            self.profiler.start()
            self.started = time.perf_counter()

    def on_fit_end(self, trainer: "Trainer") -> None:
        seconds = time.perf_counter() - self.started
        self.profiler.stop()
        communication, computation = intervals(self.profiler.events(), trainer.ranks.device.type == "cuda")
        self.share = min(1.0, uncovered(communication, computation) / 1e6 / seconds)


def intervals(events: Any, on_gpu: bool) -> tuple[list[Interval], list[Interval]]:
    """(communication, computation) in a profiler's events, microseconds: NCCL's and other kernels on a GPU, gloo's work and
    torch's operators on the CPU."""
    from torch.autograd import DeviceType

    communication: list[Interval] = []
    computation: list[Interval] = []
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if on_gpu and event.device_type == DeviceType.CUDA:
            (communication if "nccl" in event.name.lower() else computation).append(span)
        elif not on_gpu and event.name.startswith("gloo:"):
            communication.append(span)
        elif not on_gpu and event.name.startswith("aten::"):
            computation.append(span)
    return communication, computation


def loader_alone(config: RunConfig, start_step: int, steps: int) -> dict[str, Any]:
    """A job: this rank's batches of `steps` steps from `start_step` of a run that is long enough, and nothing else."""
    import torch

    from smol_data.schedule import resolve_segments
    from smol_train.batches import open_loader
    from smol_train.parallel import process_groups

    stage = config.data.stages[0].model_copy(update={"steps": FAR + WARMUP + steps, "tokens": None})
    data, train = config.data.model_copy(update={"stages": [stage]}), config.train
    segments = resolve_segments(data.stages, data.sequence_length, train.batch_sizes, data.skip_samples)
    with process_groups(config.parallel, train.seed) as ranks:
        torch.distributed.barrier()
        started = time.perf_counter()
        loader = open_loader(config.model_copy(update={"data": data}), segments, ranks, start_step)
        try:
            next(loader)
            first_batch = time.perf_counter() - started
            count = steps * loader.micro_batches(start_step)
            finish = torch.cuda.synchronize if ranks.device.type == "cuda" else lambda: None
            rate = batches_per_second(loader, count, finish)
        finally:
            loader.close()
    return {
        "data_rank": ranks.data_parallel_rank,
        "first_batch_seconds": first_batch,
        "tokens_per_second": rate * train.micro_batch_size * data.sequence_length,
    }
