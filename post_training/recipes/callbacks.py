"""What a run hears, watches and tells while it trains: signals, silent failures, its course, progress."""

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from post_training.recipes.exit_codes import REFUSED, REQUEUE
from smol_config import UserError
from smol_console import Progress

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ALERTS = "alerts.jsonl"


class Diverged(UserError):
    """The loss is no number any more; the newest checkpoint is from before."""


class Signals(TrainerCallback):
    """SIGTERM, SIGUSR1, SIGINT: finish the step, save, exit 85; before training only exit. RUN/stop: save, exit 93.

    What one rank heard, all know after the step, by a collective. A second signal of a kind acts as if this were not here.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.code = 0
        """What the run is to exit with; 0: it was not stopped."""
        self._heard = 0
        self._training = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        does = "saving after this step, then" if self._training else "nothing to save,"
        print(f"{received.name} received: {does} exiting with {REQUEUE}", flush=True)
        signal.signal(received, self._previous.pop(received))
        if not self._training:
            raise SystemExit(REQUEUE)
        self._heard = max(self._heard, REQUEUE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and (self.run / "stop").is_file():
            (self.run / "stop").unlink()
            self._heard = REFUSED
        asked = torch.tensor(self._heard, device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if int(asked) and state.global_step < state.max_steps:
            self.code = int(asked)
            control.should_save = control.should_training_stop = True


class Soundness(TrainerCallback):
    """Ends a run whose curves would look healthy, or would not be looked at: all ranks see the same numbers."""

    def __init__(self, may_rest: bool = False) -> None:
        """`may_rest`: a step may have no gradient, as GRPO's when the answers of each group are worth the same."""
        self._may_rest = may_rest
        self._looked = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """What the optimizer changes, the gradients that it is given, and FSDP2's sums of them over ranks are fp32, in whatever
        the model computes."""
        if self._looked:
            return
        self._looked = True
        optimizer = given["optimizer"]
        sharded = getattr(getattr(optimizer, "optimizer", None), "fp32_partitioned_groups_flat", None)  # DeepSpeed's masters
        masters = sharded or [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found = {tensor.dtype for master in masters for tensor in (master, master.grad) if tensor is not None}
        if found != {torch.float32}:
            kinds = ", ".join(sorted(str(kind) for kind in found)) or "nothing"
            raise UserError(f"master weights and gradients are {kinds} and not fp32 alone; small updates would be lost")
        if low := _kinds_of_sums(given["model"]) - {torch.float32}:
            kinds = ", ".join(sorted(str(kind) for kind in low))
            raise UserError(f"FSDP2 sums gradients over ranks in {kinds} and not in fp32; small ones would be lost")

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loss, norm = given["logs"].get("loss"), given["logs"].get("grad_norm")
        if loss is None or norm is None:
            return
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            raise Diverged(
                f"step {state.global_step}: loss {loss}, gradient norm {norm}; lower optim.learning_rate, or look at the data "
                "with `python -m post_training preview`. The newest checkpoint is from before"
            )
        if norm == 0 and not self._may_rest:
            raise UserError(
                f"step {state.global_step}: the gradient is 0 (loss {loss:g}), so that nothing is trained; look at the data "
                "with `python -m post_training preview`, and at lora.targets"
            )


def _kinds_of_sums(model: torch.nn.Module) -> set[torch.dtype]:
    """In which FSDP2 sums gradients over ranks; none for a model that it does not shard. torch has no public way to ask."""
    policies = [part._get_fsdp_state()._mp_policy for part in model.modules() if isinstance(part, FSDPModule)]
    return {policy.reduce_dtype or policy.param_dtype or torch.float32 for policy in policies}


class Course(TrainerCallback):
    """What became of a run, a line each in RUN/alerts.jsonl, where pre-training's trainer tells it in the same words: started,
    resumed, stopped, done, crashed; diverged is a recipe's own. A context manager around the training; the main rank writes."""

    def __init__(self, run: Path, is_main: bool, signals: Signals) -> None:
        self.run, self.is_main, self.signals = run, is_main, signals

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            told = str(error).partition("\n")[0][:500]
            self.tell("diverged" if isinstance(error, Diverged) else "crashed", f"{type(error).__name__}: {told}")

    def tell(self, event: str, text: str) -> None:
        """Add a line."""
        if self.is_main:
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, "text": text}
            with (self.run / ALERTS).open("a", encoding="utf8") as file:
                file.write(json.dumps(line) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        self.tell("resumed" if step else "started", f"step {step:,} of {state.max_steps:,} on {args.world_size} ranks")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after the last model is written."""
        if self.signals.code:
            of_all = f"{state.global_step:,} of {state.max_steps:,}"
            self.tell("stopped", f"at step {of_all}, saved; exit code {self.signals.code}")
        else:
            self.tell("done", f"{state.global_step:,} steps")


class ShowProgress(TrainerCallback):
    """Rows done (of steps there would be less than one a second), rate and time left, on the main rank."""

    def __init__(self, rows_per_step: int) -> None:
        self.rows = rows_per_step
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar = Progress("training", "rows", max(0, state.max_steps - state.global_step) * self.rows)
            self._bar.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar:
            self._bar.advance(self.rows)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar:
            self._bar.__exit__(None, None, None)
