"""The words and the picture of spike_detection.py: false alarms, what is detected, what was decided."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from benchmarks.spike_detection import (
    DEFAULTS,
    NOISE,
    PERSISTENT_STEPS,
    PLACES,
    WARMUP,
    Curve,
    false_alarms,
    places,
    rate,
    rate_in_deviations,
    walk,
)
from smol_train.sections.spikes import SpikesConfig

BEFORE = SpikesConfig(least_rise=0.1, least_norm_rise=0.1)
"""The defaults that these measurements replaced."""
SIGMAS, WINDOWS = (3, 4, 5, 6, 7, 8), (32, 64, 128, 256)
RAMP_PLACES, RAMPS = 20, (10, 100, 1000)
NATS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
DEVIATIONS = (4, 5, 6, 7, 8, 10)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def grid(curve: Curve, settings: SpikesConfig) -> str:
    """False alarms by sigma and window: of the loss + of the gradient norm."""
    rows = []
    for sigma in SIGMAS:
        row = [str(sigma)]
        for window in WINDOWS:
            config = settings.model_copy(update={"sigma": float(sigma), "window": window})
            loss, norm = false_alarms(curve, config)
            row.append(f"{loss:.1f} + {norm:.1f}")
        rows.append(row)
    return table(["sigma", *(f"window {window}" for window in WINDOWS)], rows)


def report(curve: Curve, command: str) -> str:
    curves = {name: curve.with_noise(share) for name, share in NOISE.items()}
    level, noise = (
        statistics.fmean(curve.losses),
        statistics.fmean(statistics.pstdev(place.losses) for place in places(curve, DEFAULTS, PLACES, 1)),
    )
    found = {name: places(one, DEFAULTS, PLACES, PERSISTENT_STEPS) for name, one in curves.items()}
    slow = {name: places(one, DEFAULTS, RAMP_PLACES, max(RAMPS)) for name, one in curves.items()}
    both = list(product((("before", BEFORE), ("defaults", DEFAULTS)), curves.items()))
    names = [f"{which}: {name}" for (which, _), (name, _) in both]
    alarms = [
        [which, name, *(f"{number:.1f}" for number in false_alarms(one, config))] for (which, config), (name, one) in both
    ]
    single = [
        [f"{nats:g}", *(f"{rate(one, config, found[name], [nats]):.0%}" for (_, config), (name, one) in both)] for nats in NATS
    ]
    back = [
        [
            f"{nats:g}",
            *(f"{rate(one, config, found[name], [nats] * PERSISTENT_STEPS, True):.0%}" for (_, config), (name, one) in both),
        ]
        for nats in NATS
    ]
    multiples = [
        [str(size), *(f"{rate_in_deviations(one, DEFAULTS, found[name], size):.0%}" for name, one in curves.items())]
        for size in DEVIATIONS
    ]
    ramps = [
        [
            f"{nats:g} over {steps}",
            *(
                f"{rate(one, DEFAULTS, slow[name], [nats * (n + 1) / steps for n in range(steps)]):.0%}"
                for name, one in curves.items()
            ),
        ]
        for nats, steps in product((0.5, 2.0), RAMPS)
    ]
    return TEXT.format(
        command=command, level=level, noise=noise, steps=len(curve.losses), share=NOISE["SmolLM3's batch"],
        at_smollm3=noise * NOISE["SmolLM3's batch"], places=PLACES, ramp_places=RAMP_PLACES, persistent=PERSISTENT_STEPS,
        alarms=table(["settings", "noise", "of the loss", "of the gradient norm"], alarms),
        grid=grid(curve, DEFAULTS), grid_before=grid(curve, BEFORE),
        single=table(["nats", *names], single), back=table(["nats", *names], back),
        multiples=table(["deviations", *curves], multiples), ramps=table(["nats, steps", *curves], ramps),
        before_rise=BEFORE.least_rise, before_norm=BEFORE.least_norm_rise, rise=DEFAULTS.least_rise,
        norm=DEFAULTS.least_norm_rise, sigma=DEFAULTS.sigma, window=DEFAULTS.window,
        bound=3e4 / len(curve.losses),
    )  # fmt: skip


TEXT = """# Spike detection: false alarms and what is found

    python -m benchmarks.spike_detection

The trainer's monitor on a recorded curve: {steps:,} steps of 1,024 tokens after the warm-up, at a constant learning
rate, on the quickstart's text, made with

    {command}

and kept in `benchmarks/recorded/tiny_run.csv`. Spike handling was off, so no update was left out. The mean loss is
{level:.2f} nats, the standard deviation in a window of {window} steps {noise:.3f} nats: a very noisy curve, since a
step is 1,024 tokens. The columns with less noise are this curve with its distance from the trend, a cubic in the
logarithm of the step, made smaller; "SmolLM3's batch" is a factor of {share:.3f}, the root of 1,024 tokens over
SmolLM3's 2.36 million, which gives {at_smollm3:.4f} nats. **That is an extrapolation, not a measurement at that
size**: real curves also hold noise that no batch averages out (a mixture that changes, runs of similar documents) and
true instabilities. Read the first columns as measured, the others as what the rule does to a quieter curve.

![curve and detection](spike_detection.png)

## False alarms per 10,000 steps

Nothing diverged in the recorded run, so every alarm counts as false. "Before": `least_rise` {before_rise} for both;
"defaults": sigma {sigma:g}, window {window}, `least_rise` {rise} for the loss, `least_norm_rise` {norm:g} for the
gradient norm.

{alarms}
By sigma and window, curve as recorded, loss + gradient norm, the defaults otherwise:

{grid}
The same with {before_rise} for both rises:

{grid_before}
## One step higher by so many nats

Share of {places} random places at which the step's update was left out. The gradient norm is left as it was: in a
real spike it mostly rises too, and detection is no worse than this. The window's standard deviation also holds the
fall of the loss over its steps.

{single}
By multiples of the window's standard deviation (defaults):

{multiples}
## {persistent} steps higher: share that ends in a rollback

{back}
## Ramps: share of {ramp_places} places at which any update was left out (defaults)

{ramps}
A rise that takes as long as the window becomes its own standard: slow ramps go undetected. The held-out loss shows
them, not this monitor.

## What was decided

- The loss alone gave no false alarm, so its threshold can be much lower than a tenth of the mean, which at a loss of
  2.3 is 0.23 nats whatever sigma says: on a quiet curve spikes of 0.1 to 0.2 nats passed. `least_rise` is {rise}:
  0.05 nats at a loss of 2.3.
- All false alarms came from the gradient norm, whose tail is heavy: single steps of two to three times the mean with
  a usual loss. Clipping already bounds those updates. `least_norm_rise` is {norm:g}: only a norm above three times
  the mean is a spike. It was chosen on this curve, so the zero above is no independent proof of it.
- sigma {sigma:g} and window {window} stay. Smaller sigmas gave no false alarm of the loss either and would find
  smaller spikes, but none in {steps:,} steps says only that there are fewer than {bound:.0f} in 10,000 (95 %
  confidence: 3 over the number of steps). Over millions of steps that is too many to wager on.
"""


def draw(curve: Curve, output: Path) -> None:
    """The curve with the alarms of both settings, and detection by size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(9, 9), layout="constrained", height_ratios=[2, 1.3, 2])
    steps = [WARMUP + 1 + n for n in range(len(curve.losses))]
    top.plot(steps, curve.losses, linewidth=0.4, label="loss, as recorded")
    top.plot(steps, curve.with_noise(NOISE["SmolLM3's batch"]).losses, linewidth=1, label="with the noise of SmolLM3's batch")
    top.set_ylabel("loss (nats per token)")
    middle.plot(steps, curve.norms, linewidth=0.5, color="tab:green")
    for config, name, marker in ((BEFORE, "before", "x"), (DEFAULTS, "defaults", "o")):
        at = [place.step for place, reason in walk(curve, config) if reason]
        middle.plot(
            [steps[n] for n in at], [curve.norms[n] for n in at], marker, color="tab:red", label=f"{len(at)} alarms, {name}"
        )
    middle.set_ylabel("gradient norm")
    middle.set_xlabel("step")
    sizes = [0.01 * 1.25**n for n in range(28)]
    for color, (name, share) in zip(("tab:blue", "tab:purple", "tab:orange"), NOISE.items(), strict=True):
        quiet = curve.with_noise(share)
        where = places(quiet, DEFAULTS, 60, PERSISTENT_STEPS)
        for config, style, which in ((BEFORE, "--", "before"), (DEFAULTS, "-", "defaults")):
            rates = [rate(quiet, config, where, [size]) for size in sizes]
            bottom.plot(sizes, rates, style, color=color, label=f"{which}, noise {name}")
    bottom.set_xscale("log")
    bottom.set_xlabel("rise of one step's loss (nats)")
    bottom.set_ylabel("share detected")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left" if axes is not top else "upper right")
    figure.savefig(output, dpi=110)
    pyplot.close(figure)
