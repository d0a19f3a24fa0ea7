"""RunConfig: all sections of one run together, and the checks between them. `configs/*.yaml` are read into this.

Each section stands beside the code it configures where that code is light to import (ModelConfig, DataConfig); the
trainer's own stand in smol_train/sections, so that a plan or a dry run loads neither torch nor Megatron-Core.
"""

from smol_config import Section
from smol_data.config import DataConfig
from smol_data.schedule import Segment, resolve_segments, total_steps
from smol_model.config import ModelConfig
from smol_train.sections.layout import ParallelConfig
from smol_train.sections.optim import OptimConfig
from smol_train.sections.run import CheckpointConfig, StartFromConfig, TrainConfig
from smol_train.sections.spikes import SpikesConfig
from smol_train.sections.watch import AlertsConfig, EvaluationConfig, LoggingConfig, ProfilingConfig, WatchdogConfig


class RunConfig(Section):
    """One run."""

    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    spikes: SpikesConfig = SpikesConfig()
    start_from: StartFromConfig | None = None
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    alerts: AlertsConfig = AlertsConfig()
    profiling: ProfilingConfig = ProfilingConfig()

    @property
    def tokens_per_step(self) -> int:
        """Of a step with the full batch, after a ramp."""
        return self.train.global_batch_size * self.data.sequence_length

    @property
    def segments(self) -> list[Segment]:
        """The steps of a run that takes this configuration from its beginning; a resumed one has its own past instead."""
        data = self.data
        return resolve_segments(data.stages, data.sequence_length, self.train.batch_sizes, data.skip_samples)

    @property
    def stage_steps(self) -> list[int]:
        """Steps of each stage; `tokens:` are rounded up to whole steps."""
        segments = self.segments
        return [sum(one.steps for one in segments if one.stage == stage.name) for stage in self.data.stages]

    @property
    def train_steps(self) -> int:
        return total_steps(self.segments)

    def problems(self) -> list[str]:
        found = self._layout_problems()
        if any(section.problems() for section in (*self.data.stages, self.data, self.train)):
            return found  # which steps there are is unknown until these are mended
        return [*found, *self._schedule_problems(), *self._measuring_problems()]

    def _layout_problems(self) -> list[str]:
        model, parallel, train, found = self.model, self.parallel, self.train, []
        if model.max_sequence_length and self.data.sequence_length > model.max_sequence_length:
            found.append(
                f"data.sequence_length={self.data.sequence_length} is longer than model.max_sequence_length="
                f"{model.max_sequence_length}; shorten it, or raise that (and model.rope_theta) to train a longer context"
            )
        for name, value in {
            "model.num_attention_heads": model.num_attention_heads,
            "model.num_query_groups": model.query_groups,
            "model.ffn_hidden_size": model.ffn_hidden_size,
            "model.vocab_size": model.vocab_size,
        }.items():
            if value % parallel.tensor:
                found.append(
                    f"{name}={value} is not divisible by parallel.tensor={parallel.tensor}; lower parallel.tensor or change it"
                )
        if model.num_layers % (parallel.pipeline * parallel.virtual_pipeline):
            chunks = f" x parallel.virtual_pipeline={parallel.virtual_pipeline}" if parallel.virtual_pipeline > 1 else ""
            found.append(
                f"model.num_layers={model.num_layers} is not divisible by parallel.pipeline={parallel.pipeline}{chunks}; "
                f"choose a divisor"
            )
        if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
            found.append(
                f"parallel.virtual_pipeline={parallel.virtual_pipeline} does nothing at parallel.pipeline=1; take it out or "
                f"raise parallel.pipeline"
            )
        if parallel.sequence and parallel.tensor == 1:
            found.append("parallel.sequence=true does nothing at parallel.tensor=1; take it out or raise parallel.tensor")
        row = train.micro_batch_size * self.data.sequence_length
        if parallel.sequence and row % parallel.tensor:
            found.append(
                f"a row of train.micro_batch_size={train.micro_batch_size} x data.sequence_length="
                f"{self.data.sequence_length} tokens is not divisible by parallel.tensor={parallel.tensor}, which "
                f"parallel.sequence needs"
            )
        if parallel.context > 1 and self.data.sequence_length % (2 * parallel.context):
            found.append(
                f"data.sequence_length={self.data.sequence_length} is not a multiple of 2 x parallel.context="
                f"{parallel.context}, into which every row is cut; change one of them"
            )
        if parallel.context > 1 and train.backend == "torch":
            found.append(f"parallel.context={parallel.context} needs Transformer Engine's attention; set train.backend to te")
        for step, size in train.batch_sizes:
            where = f" (from step {step} on)" if train.batch_ramp else ""
            if size % train.micro_batch_size:
                found.append(
                    f"train.global_batch_size={size}{where} is not divisible by "
                    f"train.micro_batch_size={train.micro_batch_size}; change one of them"
                )
            elif rows := size // train.micro_batch_size % parallel.micro_batch_group:
                found.append(
                    f"train.global_batch_size={size}{where} in rows of train.micro_batch_size={train.micro_batch_size} leaves "
                    f"{rows} over the groups of parallel.pipeline={parallel.pipeline} that an interleaved pipeline takes at a "
                    f"time; change one of them"
                )
        return found

    def _schedule_problems(self) -> list[str]:
        schedule, steps, found = self.optim.schedule, self.train_steps, []
        if schedule.warmup_steps + schedule.decay_steps > steps:
            found.append(
                f"optim.schedule: warmup_steps={schedule.warmup_steps} and decay_steps={schedule.decay_steps} do not fit into "
                f"the run's {steps} steps; lengthen data.stages or shorten them"
            )
        if (ramp_end := self.train.batch_sizes[-1][0]) >= steps:
            found.append(
                f"train.batch_ramp: until_step={ramp_end} is not inside the run's {steps} steps; end the ramp earlier or "
                f"lengthen data.stages"
            )
        if schedule.batch_rule != "none" and not self.train.batch_ramp:
            found.append(
                f"optim.schedule.batch_rule={schedule.batch_rule} does nothing without train.batch_ramp; take it out or give a "
                f"ramp"
            )
        return found

    def _measuring_problems(self) -> list[str]:
        train, steps, found = self.train, self.train_steps, []
        if self.logging.noise_scale_every_steps and train.global_batch_size == train.micro_batch_size:
            found.append(
                f"logging.noise_scale_every_steps={self.logging.noise_scale_every_steps} compares two batch sizes, but "
                f"train.global_batch_size={train.global_batch_size} is one micro-batch; lower train.micro_batch_size"
            )
        if self.profiling.steps and self.profiling.steps[0] >= steps:
            found.append(
                f"profiling.steps={list(self.profiling.steps)} begins after the run's {steps} steps; choose earlier ones"
            )
        return found
