"""RunConfig: all sections of one run together, and the checks between them. `configs/*.yaml` are read into this.

Each section stands beside the code it configures where that code is light to import (ModelConfig, DataConfig); the
trainer's own sections stand here, so that a plan or a dry run loads neither torch nor Megatron-Core.
"""

from typing import Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

from smol_config import Section
from smol_data.config import DataConfig
from smol_model.config import ModelConfig


class ParallelConfig(Section):
    """How the ranks share the model; data parallelism takes what is left: world / (tensor * pipeline * context)."""

    tensor: PositiveInt = 1
    """Ranks that share every layer's matrices."""
    pipeline: PositiveInt = 1
    """Stages that share the layers."""
    context: PositiveInt = 1
    """Ranks that share a row's tokens; needs the te backend."""
    sequence: bool = False
    """Norms and residuals between tensor-parallel regions are split along the row as well."""
    overlap: bool = True
    """Gradients are reduced and parameters gathered while the backward and forward passes run."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context


class TrainConfig(Section):
    """What the loop does."""

    output_dir: str
    """Folder of the run: checkpoints, metrics.jsonl, TensorBoard files."""
    global_batch_size: PositiveInt
    """Windows in one optimizer step, over all ranks."""
    micro_batch_size: PositiveInt
    """Windows in one forward pass of one rank; they make one packed row."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights; the data order has data.seed."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: bf16 weights with fp32 master weights and fp32 gradient accumulation; fp32: everything."""
    backend: Literal["auto", "torch", "te"] = "auto"
    """auto: Transformer Engine where it imports and a GPU is there, else torch."""


class ScheduleConfig(Section):
    """Learning rate by step: linear warm-up from 0 to the peak, then `kind`."""

    kind: Literal["wsd", "cosine", "multi_step", "constant"] = "wsd"
    warmup_steps: NonNegativeInt = 0
    decay_steps: NonNegativeInt = 0
    """wsd only: the last steps of the run, over which the rate falls from its peak to the minimum."""
    decay_shape: Literal["linear", "cosine", "1-sqrt", "exponential"] = "linear"
    """wsd only."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Where wsd and cosine end."""
    milestones: list[PositiveInt] = Field(default_factory=list)
    """multi_step only: the rate is multiplied by `factor` after each of these steps."""
    factor: PositiveFloat = 0.316
    """multi_step only (0.316: DeepSeek LLM's sqrt(0.1))."""

    def problems(self) -> list[str]:
        found = []
        if self.kind != "wsd" and self.decay_steps:
            found.append(f"decay_steps={self.decay_steps} only means something with kind: wsd, not {self.kind}; take it out")
        if (self.kind == "multi_step") != bool(self.milestones):
            found.append(
                f"milestones={self.milestones} with kind: {self.kind}; multi_step needs them and only multi_step takes them"
            )
        if self.milestones != sorted(set(self.milestones)):
            found.append(f"milestones={self.milestones} must rise from one to the next")
        if self.kind == "wsd" and self.decay_shape == "exponential" and self.decay_steps and not self.min_learning_rate:
            found.append("min_learning_rate=0 with decay_shape: exponential never arrives; set it above 0")
        return found


class MuonConfig(Section):
    """Muon: orthogonal updates for the matrices of the layers. Everything else is updated by AdamW, with the betas and eps of
    `optim`; learning rate and weight decay are shared."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations, computed in train.precision."""
    update_rms: PositiveFloat = 0.2
    """Root mean square of an update at a learning rate of 1: what AdamW's is about, so that its rate fits (Liu et al. 2025)."""
    parameters: list[str] = Field(
        default_factory=lambda: ["*linear_qkv.weight", "*linear_proj.weight", "*linear_fc1.weight", "*linear_fc2.weight"]
    )
    """Shell-style patterns of parameter names; each must match something, and only matrices. Embedding and head are left to
    AdamW (Jordan et al. 2024)."""


class AdEMAMixConfig(Section):
    """AdEMAMix: AdamW with the betas and eps of `optim`, and a second, slow average of the gradients."""

    beta3: float = Field(default=0.9999, gt=0, lt=1)
    """Of the slow average (Pagliardini et al. 2024: 0.9999)."""
    alpha: NonNegativeFloat = 8.0
    """Weight of the slow average beside the fast one (4 to 10, there)."""
    beta3_warmup_steps: NonNegativeInt | None = None
    """Steps in which the slow average becomes slow, from the first of `betas`; null: the whole run. Give a number for a run
    that may be lengthened."""
    alpha_warmup_steps: NonNegativeInt | None = None
    """Steps in which alpha rises from 0; null: the whole run."""


class OptimConfig(Section):
    """Optimizer and schedule."""

    optimizer: Literal["adamw", "muon", "ademamix"] = "adamw"
    """adamw shares its states out over the data-parallel ranks; the others keep them whole on each."""
    muon: MuonConfig = MuonConfig()
    ademamix: AdEMAMixConfig = AdEMAMixConfig()
    learning_rate: PositiveFloat
    """Peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    no_weight_decay: list[str] = Field(default_factory=lambda: ["*word_embeddings.weight"])
    """Shell-style patterns of parameter names left out of weight decay; each must match something. The default is
    SmolLM3's: the embedding (with the head tied to it) is left out, norms are decayed."""
    clip_grad_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def distributed(self) -> bool:
        """Whether the data-parallel ranks share the optimizer's states."""
        return self.optimizer == "adamw"

    def problems(self) -> list[str]:
        found = []
        for name, changed in {"muon": self.muon != MuonConfig(), "ademamix": self.ademamix != AdEMAMixConfig()}.items():
            if changed and self.optimizer != name:
                found.append(
                    f"{name} is set, but optimizer={self.optimizer} does not read it; set optimizer: {name} or take it out"
                )
        slow = self.ademamix.beta3
        if self.optimizer == "ademamix" and self.betas[0] > slow:
            found.append(f"ademamix.beta3={slow} is below betas[0]={self.betas[0]}; the slow average needs the larger one")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas={list(self.betas)} must be at least 0 and below 1")
        if self.schedule.min_learning_rate > self.learning_rate:
            found.append(
                f"schedule.min_learning_rate={self.schedule.min_learning_rate} is above learning_rate={self.learning_rate}"
            )
        return found


class CheckpointConfig(Section):
    """When checkpoints are saved and which are kept. One is always saved at a stage's end and at the run's end."""

    every_steps: PositiveInt = 1000
    every_minutes: PositiveFloat | None = None
    """Also after this much time since the last one, whichever comes first."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept on disk."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints at multiples of this are kept for good."""
    async_save: bool = False
    """Write in the background while training goes on."""


class StartFromConfig(Section):
    """How a new run takes over an earlier one's checkpoint; a run that has its own checkpoint resumes from that."""

    checkpoint: str
    """An iter_* folder, or a run's folder: its newest whole checkpoint."""
    optimizer: bool = True
    """Take over the optimizer's state."""
    data_position: bool = True
    """Go on in the data order and the step count where it stopped; false starts both at 0."""


class LoggingConfig(Section):
    """TensorBoard, metrics.jsonl and the terminal."""

    every_steps: PositiveInt = 1
    """Steps between lines; a line holds that step's values, not means. Evaluations are always written."""
    peak_tflops: PositiveFloat | None = None
    """Dense bf16 TFLOP/s of one device, for perf/model_flops_utilization; null: known from the GPU's name, else left out."""


class EvaluationConfig(Section):
    """Loss on data.held_out during training."""

    every_steps: PositiveInt | None = None
    """Steps between evaluations; null: at the end only."""
    windows: PositiveInt = 256
    """Windows of each held-out set, from its beginning; fewer where it holds fewer."""


class WatchdogConfig(Section):
    """How long a rank may make no progress before the stacks of all ranks are written and the run exits 85."""

    minutes: NonNegativeFloat = 30.0
    """For one training step; 0 switches the watchdog off."""
    first_step_minutes: PositiveFloat = 60.0
    """For building the model and loading the checkpoint, and again for the first step, which compiles."""
    pause_minutes: PositiveFloat = 60.0
    """For all that happens between two steps (evaluating, saving) and after the last."""

    @property
    def longest_minutes(self) -> float:
        """The longest that a rank may wait; collectives must be given more, or they end the run first."""
        return max(self.minutes, self.first_step_minutes, self.pause_minutes)

    def problems(self) -> list[str]:
        if self.minutes > self.first_step_minutes:
            return [
                f"first_step_minutes={self.first_step_minutes} is below minutes={self.minutes}, but the first step takes "
                f"longest; raise it"
            ]
        return []


AlertEvent = Literal["started", "resumed", "stalled", "stopped", "crashed", "done"]
"""What can be told: see smol_train/callbacks/alerts.py."""


class AlertsConfig(Section):
    """What is told to a chat channel. Every event is also a line of alerts.jsonl."""

    webhook: SecretStr | None = Field(default=None, exclude=True)
    """URL that takes Slack's {"text": ...}, such as ${SLACK_WEBHOOK}. Whoever knows it can write to the channel, so it is
    not stored with checkpoints and not printed."""
    events: list[AlertEvent] = Field(default_factory=lambda: list(get_args(AlertEvent)))
    """Events that go to the webhook."""

    def problems(self) -> list[str]:
        url = self.webhook.get_secret_value() if self.webhook else ""
        if url and not url.startswith(("https://", "http://", "${")):
            return [f"webhook={url[:8]!r}... is not an http or https URL; give the whole URL of the webhook"]
        return []


class ProfilingConfig(Section):
    """A window of steps recorded by torch's profiler. RUN/profile opens one of 5 steps while the run goes on."""

    steps: tuple[NonNegativeInt, PositiveInt] | None = None
    """[100, 105] records the 5 steps after step 100."""
    ranks: list[NonNegativeInt] = Field(default_factory=lambda: [0])
    """Ranks that record; each writes files of its own."""
    memory: bool = False
    """Also record every allocation of GPU memory with its stack; does nothing on a host without CUDA."""

    def problems(self) -> list[str]:
        if self.steps and self.steps[0] >= self.steps[1]:
            return [f"steps={list(self.steps)} holds no step; give [first, end] with first < end"]
        return []


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
