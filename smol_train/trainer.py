"""The loop and its state; nothing here about logging, saving, signals or evaluation: those are callbacks.

    RunConfig -> model, optimizer, data order -> (resume | start_from | fresh) -> step, step, step -> exit code

One step: set the learning rate, run Megatron-Core's pipeline schedule over this rank's micro-batches, reduce a few numbers over
all ranks (loss, targets, gradient norm, whether anyone wants to stop), judge them (spikes.py), and let the optimizer clip and
update. A spike's update is left out; a persistent one takes the run back to an earlier checkpoint (rollback.py).
"""

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from smol_data.batch import PackedBatch
from smol_data.order import check_fingerprint, fingerprint, history_of
from smol_data.schedule import batch_at, resolve_segments, total_steps
from smol_train import checkpoint
from smol_train.batches import Batches, open_loader
from smol_train.callbacks.base import Callback, Metrics
from smol_train.checkpoint_folder import TrainState
from smol_train.config import RunConfig
from smol_train.exit_codes import DONE, REFUSED, REQUEUE
from smol_train.model import build_chunks, gathered_parameters
from smol_train.optim import build_optimizer, gradient_norm, set_hyperparameters, update
from smol_train.parallel import Ranks
from smol_train.reduction_clock import ReductionClock
from smol_train.rerun import SuspectedDevice, examine
from smol_train.restore import restore
from smol_train.rollback import choose, enact, rollbacks_in_a_row
from smol_train.schedule import learning_rate
from smol_train.spikes import SpikeMonitor, Verdict
from smol_train.step import forward_step, sums_by_dataset

logger = logging.getLogger(__name__)

Request = Literal["save", "profile"]
"""What can be asked for while a run goes on, besides its end."""
REQUESTS: tuple[Request, ...] = get_args(Request)


class Trainer:
    """One run on this rank, from its newest checkpoint to its end."""

    def __init__(self, config: RunConfig, ranks: Ranks, callbacks: Sequence[Callback] = ()) -> None:
        self.config, self.ranks, self.callbacks = config, ranks, callbacks
        self.output_dir = Path(config.train.output_dir)
        self.chunks = build_chunks(config)
        self.reduction = ReductionClock(self.chunks[0].config, ranks.device)
        self.optimizer = build_optimizer(config, self.chunks)
        self.state, self.damage = restore(config, self.chunks, self.optimizer)
        self.saved_step = self.state.step
        """Step from which the run would go on if it were started again."""
        self._open_data()
        self.monitor = SpikeMonitor(**self.state.monitor)
        self.verdict = Verdict()
        """On the last step done."""
        self.exit_code = self._wanted_code = DONE
        self.requests: frozenset[Request] = frozenset()
        """What all ranks agreed on with the last step, for the callbacks that do it."""
        self._wanted_requests: set[Request] = set()

    def fit(self) -> int:
        """Train to the end, or until a stop is requested; returns the process's exit code."""
        try:
            self._tell("on_fit_start", self)
            if self.state.step >= self.total_steps:
                logger.info("nothing left to train: the run is complete at step %d", self.state.step)
            try:
                while self.state.step < self.total_steps and self.exit_code == DONE:
                    self._tell("on_step_start", self)
                    metrics = self._train_step()
                    self._tell("on_step_end", self, metrics)
                    if self.verdict.roll_back and self.exit_code == DONE:
                        self._roll_back()
            except SuspectedDevice as suspected:
                self.exit_code = REQUEUE
                self._tell("on_suspected_device", self, suspected)
            self._tell("on_fit_end", self)
        finally:
            self._tell("close")
            self.loader.close()
        return self.exit_code

    def request_stop(self, code: int) -> None:
        """Stop after the coming step, on all ranks, with this exit code, or the highest; any one rank may ask."""
        self._wanted_code = max(self._wanted_code, code)

    def request(self, what: Request) -> None:
        """Have something done on all ranks after the coming step; any one rank may ask."""
        self._wanted_requests.add(what)

    @property
    def stage(self) -> str:
        """Name of the stage of the last step done."""
        return batch_at(self.segments, max(self.state.step - 1, 0)).stage

    @property
    def at_stage_end(self) -> bool:
        """Whether the last step done was the last of its stage."""
        return self.state.step == self.total_steps or batch_at(self.segments, self.state.step).stage != self.stage

    def snapshot(self, reason: str) -> TrainState:
        """The state to store with a checkpoint, with the fingerprint of the data consumed so far."""
        return replace(self.state, reason=reason, data=self._fingerprint(), monitor=self.monitor.state())

    # --- one step ------------------------------------------------------------------------------------------------------------

    def _train_step(self) -> Metrics:
        started = time.perf_counter()
        self.batches.seconds = 0.0
        batch = batch_at(self.segments, self.state.step)
        batch_share = batch.batch_size / self.config.train.global_batch_size
        rate = learning_rate(self.config.optim, self.total_steps, self.state.step + 1, batch_share)
        set_hyperparameters(self.optimizer, self.config.optim, rate)
        self.clear_gradients()
        reports = self.forward_backward(self.batches, self.loader.micro_batches(self.state.step), forward_only=False)
        self._synchronize()
        passed = time.perf_counter()
        loss, targets, grad_norm, losses = self._reduce(reports, gradient_norm(self.optimizer))
        if not math.isfinite(loss + grad_norm) and not self.monitor.spiking:  # once in a row: it costs a step
            finding = examine(self, reports)
            if not finding.reproducible:
                raise SuspectedDevice(finding, self.state.step)
        self.verdict = self.monitor.judge(self.config.spikes, batch.stage, self.state.step, loss, grad_norm)
        if self.verdict.update:
            update(self.optimizer, grad_norm, self._clip())
        ended = time.perf_counter()

        tokens = batch.batch_size * self.config.data.sequence_length
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=batch.first_sample + batch.batch_size,
            tokens=self.state.tokens + tokens,
        )
        return {
            "train/loss": loss,
            **{f"train/loss/{dataset}": value for dataset, value in losses.items()},
            "train/grad_norm": grad_norm,
            "train/updates_left_out": float(not self.verdict.update),
            "train/learning_rate": rate,
            "train/global_batch_size": batch.batch_size,
            "train/targets": targets,
            "perf/step_seconds": ended - started,
            "perf/forward_backward_seconds": passed - started - self.batches.seconds,
            "perf/reduction_seconds": self.reduction.seconds,
            "perf/optimizer_seconds": ended - passed,
            "perf/data_wait_seconds": self.batches.seconds,
            "perf/data_wait_share": self.batches.seconds / (ended - started),
            "perf/tokens_per_second": tokens / (ended - started),
            "perf/tokens_per_second_per_device": tokens / (ended - started) / self.ranks.world_size,
        }

    def clear_gradients(self) -> None:
        """What comes before a forward and backward pass: train mode, and no gradients left of the one before."""
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def forward_backward(self, batches: Iterator[PackedBatch], micro_batches: int, forward_only: bool) -> list[Any]:
        """Megatron-Core's schedule over this rank's micro-batches; the last stage gets each one's loss sum and targets."""
        reports: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            # Every chunk goes over the same micro-batches; at most a step's, 28 bytes a token, are kept for the later ones.
            data_iterator=list(itertools.tee(batches, len(self.chunks))),
            model=self.chunks,
            num_microbatches=micro_batches,
            # A micro-batch of b windows is one packed row, so the pipeline's messages are [b * S, 1, hidden].
            seq_length=self.config.train.micro_batch_size * self.config.data.sequence_length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
        return reports

    def sum_over_ranks(
        self, reports: list[Any], wanted: Sequence[float] = (), datasets: int = 1
    ) -> tuple[list[tuple[float, float]], list[float]]:
        """((loss sum, targets) of each dataset, the highest of each wanted number) over all ranks, known to all ranks after
        one collective.

        Only last stages have reports; tensor-parallel ranks repeat each other's and are counted once.
        """
        ranks, sums = self.ranks, 2 * datasets
        world = torch.zeros(ranks.world_size, sums + len(wanted), dtype=torch.float64, device=ranks.device)
        mine = world[ranks.rank]
        if reports:
            mine[:sums] = sums_by_dataset(reports, datasets).flatten() / self.config.parallel.tensor
        mine[sums:] = torch.tensor(wanted, dtype=torch.float64)
        torch.distributed.all_reduce(world)
        numbers = torch.cat([world[:, :sums].sum(0), world[:, sums:].amax(0)]).tolist()  # one wait for the device
        return list(zip(numbers[:sums:2], numbers[1:sums:2], strict=True)), numbers[sums:]

    def _reduce(self, reports: list[Any], norm: float) -> tuple[float, float, float, dict[str, float]]:
        """(mean loss, targets, gradient norm, mean loss of each dataset that had targets), the same on all ranks to the last
        bit, whatever a rank's own sums rounded to."""
        asked, self._wanted_requests = self._wanted_requests, set()
        wanted = [norm, self._wanted_code, *(request in asked for request in REQUESTS)]
        names = self.loader.dataset_names
        sums, (norm, code, *agreed) = self.sum_over_ranks(reports, wanted, len(names))
        self.exit_code = int(code)
        self.requests = frozenset(request for request, yes in zip(REQUESTS, agreed, strict=True) if yes)
        total, targets = (sum(column) for column in zip(*sums, strict=True))
        losses = {name: loss / count for name, (loss, count) in zip(names, sums, strict=True) if count}
        return total / max(targets, 1.0), targets, norm, losses

    def _clip(self) -> float:
        """Largest gradient norm of the coming update: harder for a while after a rollback."""
        factor = self.config.spikes.clip_factor if self.state.step < self.state.clip_until else 1.0
        return self.config.optim.clip_grad_norm * factor

    # --- back from a spike ---------------------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        """Go on from a checkpoint before the spike and pass over its samples."""
        settings = self.config.spikes
        if rollbacks_in_a_row(self.state, settings) >= settings.max_rollbacks:
            logger.error(
                "step %d: %s, after %d rollbacks in a row (spikes.max_rollbacks); stopping: look into RUN/spikes, and lower "
                "optim.learning_rate or go on from an earlier checkpoint",
                self.state.step,
                self.verdict.reason,
                self.state.rollbacks,
            )
            self.exit_code = REFUSED
            return
        rollback = choose(self.config, self.state, self.monitor, self.segments)
        if rollback is None:
            logger.warning("step %d: %s; there is no checkpoint to go back to, going on", self.state.step, self.verdict.reason)
            self.monitor.accept()
            return
        self._tell("on_rollback", self, rollback)
        if self.ranks.is_main:
            enact(self.output_dir, rollback, self.state.skips)
        torch.distributed.barrier()
        self.loader.close()
        with gathered_parameters(self.chunks):  # a gather that is still due would put the spike's weights back
            self.state = checkpoint.load(rollback.checkpoint, self.config, self.chunks, self.optimizer, with_optimizer=True)
        self._open_data()
        self.monitor, self.verdict = SpikeMonitor(**self.state.monitor), Verdict()
        self._tell("on_rolled_back", self, rollback)

    def _synchronize(self) -> None:
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()

    def _tell(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    # --- data ----------------------------------------------------------------------------------------------------------------

    def _open_data(self) -> None:
        """The batches from the present step on."""
        data, train = self.config.data, self.config.train
        history = history_of(self.state.data) if self.state.data else []
        skips = [*data.skip_samples, *self.state.skips]
        self.segments = resolve_segments(data.stages, data.sequence_length, train.batch_sizes, skips, history)
        self.total_steps = total_steps(self.segments)
        self.loader = open_loader(self.config, self.segments, self.ranks, self.state.step)
        self._check_data()
        self.batches = Batches(self.loader)

    def _check_data(self) -> None:
        if self.state.data:
            for line in check_fingerprint(self.state.data, self._fingerprint()):
                logger.info("data changed since the checkpoint: %s", line)

    def _fingerprint(self) -> dict[str, Any]:
        """Datasets that earlier stages used up are not open any more; their digests come from the checkpoint."""
        digests = {**self.state.data.get("manifests", {}), **self.loader.digests}
        return fingerprint(self.segments, self.state.step, self.config.data.seed, self.config.data.sequence_length, digests)
