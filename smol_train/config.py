"""RunConfig: all sections of one run together, and the checks between them. `configs/*.yaml` are read into this.

Each section stands beside the code it configures where that code is light to import (ModelConfig, DataConfig); the
trainer's own stand in smol_train/sections, so that a plan or a dry run loads neither torch nor Megatron-Core.
"""

from smol_config import Section
from smol_data.config import DataConfig
from smol_model.config import ModelConfig
from smol_train.sections.layout import ParallelConfig
from smol_train.sections.optim import OptimConfig
from smol_train.sections.run import CheckpointConfig, StartFromConfig, TrainConfig
from smol_train.sections.watch import AlertsConfig, EvaluationConfig, LoggingConfig, ProfilingConfig, WatchdogConfig


class RunConfig(Section):
    """One run."""

    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    start_from: StartFromConfig | None = None
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    alerts: AlertsConfig = AlertsConfig()
    profiling: ProfilingConfig = ProfilingConfig()

    @property
    def tokens_per_step(self) -> int:
        return self.train.global_batch_size * self.data.sequence_length

    @property
    def stage_steps(self) -> list[int]:
        """Steps of each stage; `tokens:` are rounded up to whole steps."""
        return [stage.steps or -(-(stage.tokens or 0) // self.tokens_per_step) for stage in self.data.stages]

    @property
    def train_steps(self) -> int:
        return sum(self.stage_steps)

    def problems(self) -> list[str]:
        return [*self._layout_problems(), *self._schedule_problems()]

    def _layout_problems(self) -> list[str]:
        model, parallel, train, found = self.model, self.parallel, self.train, []
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
        if model.num_layers % parallel.pipeline:
            found.append(
                f"model.num_layers={model.num_layers} is not divisible by parallel.pipeline={parallel.pipeline}; "
                f"choose a divisor"
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
        if train.global_batch_size % train.micro_batch_size:
            found.append(
                f"train.global_batch_size={train.global_batch_size} is not divisible by "
                f"train.micro_batch_size={train.micro_batch_size}; change one of them"
            )
        return found

    def _schedule_problems(self) -> list[str]:
        schedule, found = self.optim.schedule, []
        if schedule.warmup_steps + schedule.decay_steps > self.train_steps:
            found.append(
                f"optim.schedule: warmup_steps={schedule.warmup_steps} and decay_steps={schedule.decay_steps} do not fit into "
                f"the run's {self.train_steps} steps; lengthen data.stages or shorten them"
            )
        if self.profiling.steps and self.profiling.steps[0] >= self.train_steps:
            found.append(
                f"profiling.steps={list(self.profiling.steps)} begins after the run's {self.train_steps} steps; choose earlier "
                f"ones"
            )
        return found
