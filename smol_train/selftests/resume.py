"""`resume`: a run that was killed, and one that was stopped by a signal, go on as if nothing had happened.

    whole      0 ------------------------------------------> K    what the others are compared with
    killed     0 ---- save ---- kill -9                           on every rank, at a step drawn by chance
    after it          save ---------------------------------> K   same folder, same layout
    stopped    0 --------------------- SIGTERM, save              at a step drawn by chance
    after it                           save ----------------> K   another layout, then the same one

Every line is a set of fresh processes. Each step that is trained again must take the same samples and be given the same
tokens, and on the same layout have the same loss and gradient norm to the last bit. Where a layout is not
repeatable (kernels on a GPU may add in any order), a second uninterrupted run shows it: then, and on another layout, the
tolerances of smol_train/selftests/runs.py hold.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.exit_codes import REQUEUE
from smol_train.sections.run import StartFromConfig
from smol_train.selftests.base import JobError, Setting, Verdict, verdict
from smol_train.selftests.layouts import Placed, allowed, configured
from smol_train.selftests.runs import Run, data_fault, distance, together, tolerance_text, train
from smol_train.short_run import shortened

FEWEST_STEPS = 6


class Moments(NamedTuple):
    """Steps done when something happens."""

    save_every: int
    kill: int
    stop: int


def check(setting: Setting) -> Verdict:
    moments = draw(setting.steps, setting.seed)
    whole = uninterrupted(setting)
    again: Callable[[], Run] = _once(lambda: uninterrupted(setting, "again"))
    faults, details = [], [f"seed {setting.seed}: killed after step {moments.kill}, stopped after step {moments.stop}"]
    for part in (after_kill, after_signal):
        try:
            found, told = part(setting, moments, whole, again)
        except (JobError, ValueError) as error:
            found, told = [f"{part.__name__.replace('_', ' ')}: {error}"], []
        faults += found
        details += told
    elsewhere = "and on another layout" if another_layout(setting) else "(no other layout fits these ranks)"
    summary = f"{setting.steps} steps = killed and resumed = stopped and resumed, on {_own(setting).name} {elsewhere}"
    return verdict(faults, summary, details, seed=setting.seed, moments=moments._asdict())


def draw(steps: int, seed: int) -> Moments:
    """Moments by chance; raises ConfigError where a run is too short for them."""
    if steps < FEWEST_STEPS:
        raise ConfigError(f"--steps {steps} leaves no room to kill, stop and resume a run; give at least {FEWEST_STEPS}")
    chance, save_every = random.Random(seed), steps // 4
    return Moments(save_every, kill=chance.randint(2 * save_every + 1, steps - 1), stop=chance.randint(2, steps - 2))


def uninterrupted(setting: Setting, name: str = "whole") -> Run:
    return _train(setting, _own(setting), name)


def after_kill(setting: Setting, moments: Moments, whole: Run, again: Callable[[], Run]) -> tuple[list[str], list[str]]:
    """(faults, details) of a run that was killed and started again in its folder."""
    own = _own(setting)
    config = _short(setting, own.config, "killed", save_every=moments.save_every)
    setting.crew.run_killed(train, own.world_size, config=config, save=True, kill_at=moments.kill)
    resumed = together(setting.crew.run(train, own.world_size, config=config))
    saved = [moments.kill // moments.save_every * moments.save_every]
    if config.checkpoint.async_save:  # the last one may have been under way
        saved.append(saved[0] - moments.save_every)
    return _judge("after kill -9", whole, resumed, saved, again, config)


def after_signal(setting: Setting, moments: Moments, whole: Run, again: Callable[[], Run]) -> tuple[list[str], list[str]]:
    """(faults, details) of a run that a signal stopped, resumed on another layout and on its own."""
    own, name = _own(setting), "stopped"
    stopped = _train(setting, own, name, save=True, stop_at=moments.stop)
    if stopped.exit_code != REQUEUE or len(stopped.losses) != moments.stop:
        ended = f"it ended with code {stopped.exit_code} after step {len(stopped.losses)}"
        return [f"SIGTERM in step {moments.stop}: {ended}, not with {REQUEUE} after that step"], []
    faults: list[str] = []
    details: list[str] = []
    if other := another_layout(setting):
        start = StartFromConfig(checkpoint=str(setting.folder / name))
        config = _short(setting, other.config, "elsewhere").model_copy(update={"start_from": start})
        elsewhere = together(setting.crew.run(train, other.world_size, config=config))
        faults, details = _judge(f"after SIGTERM, on {other.name}", whole, elsewhere, [moments.stop], None, config)
    resumed = _train(setting, own, name)
    found, told = _judge("after SIGTERM", whole, resumed, [moments.stop], again, own.config)
    return faults + found, details + told


def another_layout(setting: Setting) -> Placed | None:
    """One that cuts the model in another way, or else shares the data in another way."""
    own, *others = allowed(setting.config, setting.world_size)[0]
    others.sort(key=lambda one: one.model_layout == own.model_layout)
    return others[0] if others else None


def _judge(
    name: str, whole: Run, resumed: Run, saved: list[int], again: Callable[[], Run] | None, config: RunConfig
) -> tuple[list[str], list[str]]:
    """(faults, details). `saved`: steps of the checkpoints that may be the newest whole one. `again` gives a second
    uninterrupted run on the same layout; None: the layout is another."""
    start = resumed.first_step
    if start not in saved:
        return [f"{name}: it went on from step {start}, not from the checkpoint of step {saved[0]}"], []
    expected, precision = whole.after(start), config.train.precision
    if len(resumed.losses) != len(expected.losses):
        return [f"{name}: it trained {len(resumed.losses)} steps, not {len(expected.losses)}"], []
    if fault := data_fault(expected, resumed):
        return [f"{name}: {fault}"], []
    apart = distance(expected, resumed)
    line = f"{name}: steps {start + 1} to {start + len(resumed.losses)}, same data, {apart}"
    if apart == (0.0, 0.0):
        return [], [line]
    if again and distance(whole, again()) == (0.0, 0.0):
        return [f"{line}, where two uninterrupted runs agree bit for bit"], []
    allowance = f"allowed in {tolerance_text(precision)}"
    return ([], [f"{line} ({allowance})"]) if apart.within(precision) else ([f"{line}; {allowance}"], [])


def _own(setting: Setting) -> Placed:
    return configured(setting.config, setting.world_size)


def _short(setting: Setting, config: RunConfig, name: str, save_every: int | None = None) -> RunConfig:
    changes = {"every_steps": save_every or setting.steps, "every_minutes": None}
    short = shortened(config, setting.steps, setting.folder / name)
    return short.model_copy(update={"checkpoint": config.checkpoint.model_copy(update=changes)})


def _train(setting: Setting, placed: Placed, name: str, save: bool = False, stop_at: int | None = None) -> Run:
    config = _short(setting, placed.config, name)
    return together(setting.crew.run(train, placed.world_size, config=config, save=save, stop_at=stop_at))


def _once(make: Callable[[], Run]) -> Callable[[], Run]:
    """`make`, called when first asked for and not again."""
    made: list[Run] = []

    def get() -> Run:
        if not made:
            made.append(make())
        return made[0]

    return get
