"""Our side of benchmarks.train_step: the real Trainer with its loader and all its telemetry, nothing evaluated or saved."""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from benchmarks.train_step_job import Job, Measurement, serve
from conversion.weights import weight_table
from pretrain_smol import quiet_known_warnings
from smol_config import UserError, load
from smol_train.callbacks.alerts import Alerts
from smol_train.callbacks.base import Callback, Metrics
from smol_train.callbacks.devices import DeviceMetrics
from smol_train.callbacks.metrics import MetricsWriter, peak_tflops
from smol_train.callbacks.parameter_norms import ParameterNorms
from smol_train.callbacks.progress import Progress
from smol_train.callbacks.prometheus import PrometheusFile
from smol_train.callbacks.rank_report import RankReport
from smol_train.callbacks.signals import TriggerFiles
from smol_train.callbacks.spikes import SpikeReports
from smol_train.config import RunConfig
from smol_train.timing import StepTimer

if TYPE_CHECKING:
    from smol_train.trainer import Trainer


class Recorder(StepTimer):
    """Takes the timed steps' seconds, last of the callbacks so that theirs are in the wall clock; ends the run."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.warmup, job.steps)
        self.job, self.losses = job, list[float]()
        self.profiler: Any = None
        self.summing, self.collectives = 0.0, list[float]()

    @property
    def result(self) -> Measurement:
        result = Measurement(losses=self.losses)
        for seconds in zip(self.wall, *self.parts.values(), self.collectives, strict=True):
            result.add(*seconds)
        return result

    def on_fit_start(self, trainer: "Trainer") -> None:
        sum_over_ranks: Any = trainer.sum_over_ranks

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            sums = sum_over_ranks(*arguments)
            self.summing = time.perf_counter() - started
            return sums

        trainer.sum_over_ranks = timed  # type: ignore[assignment]
        super().on_fit_start(trainer)

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        super().on_step_end(trainer, metrics)
        done, job = trainer.state.step, self.job
        self.losses.append(metrics["train/loss"])
        if len(self.wall) > len(self.collectives):
            self.collectives.append(metrics["perf/reduction_seconds"] + self.summing)
        if done == job.warmup and job.profile_rows:
            self._start_profiler()
        if done == job.warmup + job.steps - 1:
            trainer.request_stop(85)  # after the coming step
        self.last = time.perf_counter()

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self.profiler is not None:
            self.profiler.stop()
            key = "self_cuda_time_total" if trainer.ranks.device.type == "cuda" else "self_cpu_time_total"
            rows = self.profiler.key_averages(group_by_input_shape=True)
            print(rows.table(sort_by=key, row_limit=self.job.profile_rows, max_name_column_width=48))

    def _start_profiler(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self.profiler.start()


def measure(job: Job) -> Measurement:
    """Train warm-up and timed steps; the first measurement also writes the initial weights for the peer."""
    quiet_known_warnings()
    from smol_model.spec import resolve_backend
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, job.config, job.overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        recorder = Recorder(job)
        try:
            trainer = Trainer(config, ranks, [*telemetry(config, ranks.is_main), recorder])
            if job.weights and not Path(job.weights).exists():
                write_initial_weights(trainer, Path(job.weights))
            with contextlib.redirect_stdout(sys.stderr if not job.profile_rows else sys.stdout):  # the lines of Progress
                trainer.fit()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{job.config} with train.micro_batch_size={config.train.micro_batch_size} does not fit into the GPU's memory; "
                f"lower it, or data.sequence_length, or take a smaller model"
            ) from error
        result = recorder.result
        result.name = f"this repository, {resolve_backend(config.train.backend)} backend"
        result.peak_tflops = peak_tflops(ranks.device, config.logging.peak_tflops)
        return result


def telemetry(config: RunConfig, is_main: bool) -> list[Callback]:
    """What pretrain_smol.py has for looking and telling, in its order."""
    alerts, devices = Alerts(config.alerts, Path(config.train.output_dir), is_main), DeviceMetrics()
    return [
        TriggerFiles(),
        SpikeReports(alerts),
        ParameterNorms(),
        devices,
        RankReport(config.logging, alerts, devices),
        MetricsWriter(),
        PrometheusFile(config.logging.prometheus_file),
        Progress(),
    ]


def write_initial_weights(trainer: "Trainer", path: Path) -> None:
    """The trainer's weights under transformers' names, dtype kept."""
    from smol_train.optim import parameter_names

    model, parameters = trainer.config.model, parameter_names(trainer.chunks)
    tensors: dict[str, torch.Tensor] = {}
    for weight in weight_table(model):
        for name, tensor in weight.split(parameters[weight.megatron].detach(), model).items():
            tensors[name] = tensor.clone().contiguous()
    save_file(tensors, str(path))


if __name__ == "__main__":
    sys.exit(serve(measure))
