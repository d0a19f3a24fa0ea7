"""The sections of what looks at a run: `logging:`, `evaluation:`, `watchdog:`, `alerts:`, `profiling:`."""

from typing import Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

from smol_config import Section


class LoggingConfig(Section):
    """TensorBoard, metrics.jsonl and the terminal."""

    every_steps: PositiveInt = 1
    """Steps between lines; a line holds that step's values, not means. Evaluations are always written."""
    noise_scale_every_steps: PositiveInt | None = None
    """Steps between measurements of train/gradient_noise_scale, each a micro-batch more to compute; null: none."""
    peak_tflops: PositiveFloat | None = None
    """Dense bf16 TFLOP/s of one device, for perf/model_flops_utilization; null: known from the GPU's name, else left out."""
    parameter_norms_every_steps: NonNegativeInt = 100
    """Steps between norms of the weights, by group; 0: never."""
    ranks_every_steps: NonNegativeInt = 100
    """Steps over which all ranks' seconds are compared (ranks/..., data/...) and throughput is judged; 0: never."""
    throughput_drop: float = Field(default=0.2, gt=0, lt=1)
    """Alert when the throughput falls by this share of the run's median."""
    throughput_drop_windows: PositiveInt = 2
    """And stays there for so many times `ranks_every_steps`."""
    tracker: Literal["none", "trackio", "wandb"] = "none"
    """Experiment tracker that gets all metrics too; install the package of that name."""
    tracker_project: str = "smol"
    """The project's name there."""
    prometheus_file: str | None = None
    """File for node_exporter's textfile collector, ending in .prom and in the folder that it reads; null: none."""

    def problems(self) -> list[str]:
        measured, found = self.noise_scale_every_steps, []
        if measured and measured % self.every_steps:
            found.append(
                f"noise_scale_every_steps={measured} is not a multiple of every_steps={self.every_steps}, so most measurements "
                f"would not be written; make it one"
            )
        if self.prometheus_file and not self.prometheus_file.endswith(".prom"):
            found.append(f"prometheus_file={self.prometheus_file} would not be read by node_exporter; let it end in .prom")
        return found


class EvaluationConfig(Section):
    """Loss on data.held_out during training."""

    every_steps: PositiveInt | None = None
    """Steps between evaluations; null: at the end only."""
    windows: PositiveInt = 256
    """Windows of each held-out set, from its beginning; fewer where it holds fewer."""


PhaseName = Literal["start-up", "first step", "step", "between steps", "after the last step", "ended"]
"""What a rank is doing, as its heartbeat says."""


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

    def minutes_of(self, phase: PhaseName) -> float:
        """How long a rank may be in a phase; 0: it is not looked at."""
        if not self.minutes or phase == "ended":
            return 0.0
        if phase in ("start-up", "first step"):
            return self.first_step_minutes
        return self.minutes if phase == "step" else self.pause_minutes

    def problems(self) -> list[str]:
        if self.minutes > self.first_step_minutes:
            return [
                f"first_step_minutes={self.first_step_minutes} is below minutes={self.minutes}, but the first step takes "
                f"longest; raise it"
            ]
        return []


AlertEvent = Literal[
    "started",
    "resumed",
    "stalled",
    "spike",
    "nan",
    "rollback",
    "damaged_checkpoint",
    "save_failed",
    "disk_low",
    "throughput_drop",
    "stopped",
    "crashed",
    "done",
    "silent",
    "job_waits",
    "chain_stopped",
    "upload_lag",
    "scheduler_silent",
    "behind",
]
"""What can be told: see smol_train/callbacks/alerts.py; from `silent` on by the watcher beside the run, slurm/watch.py, and
`behind` by the one that evaluates it, evaluation/report.py."""


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
