"""Pre-training: parse -> build -> fit -> clean up.

    python pretrain_smol.py --config configs/smollm3/pretrain.yaml --dry-run          plan only: no GPU, no data
    python pretrain_smol.py --config configs/quickstart.yaml                          one process
    torchrun --nproc-per-node 8 pretrain_smol.py --config C.yaml train.seed=7         one node
    srun ... python pretrain_smol.py --config C.yaml                                  a cluster, one task a rank
    python pretrain_smol.py --check-environment                                       what is installed and what for

A run goes on from its newest whole checkpoint. Exit codes: 0 done, 85 start me again (a signal: state is saved; a hang: stacks
are in RUN/hangs), 93 do not start me again before the configuration or the data is mended, or because RUN/stop was there;
anything else is a crash. While it runs, `touch` RUN/stop, RUN/save or RUN/profile (5 steps, into RUN/profiles).
"""

import argparse
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from smol_config import load
from smol_console import exit_code
from smol_train.exit_codes import REFUSED


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return exit_code(lambda: _run(options), REFUSED)


def _run(options: argparse.Namespace) -> int:
    if options.check_environment:
        from smol_train.environment import check_environment

        return check_environment()
    if options.dry_run:
        from smol_train.plan import dry_run

        return dry_run(options.config, options.overrides, as_json=options.json)
    return train(options.config, options.overrides)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="C.yaml", help="the run's configuration")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan, and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run: one JSON object")
    parser.add_argument("--check-environment", action="store_true", help="say what is installed and what it will be used for")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    options = parser.parse_intermixed_args(arguments)
    if not options.check_environment and not options.config:
        parser.error("--config is needed (or --check-environment)")
    return options


def quiet_known_warnings() -> None:
    """Silence what the libraries say at every start and what --check-environment says better."""
    warnings.filterwarnings("ignore", module=r"megatron\.core.*")
    warnings.filterwarnings("ignore", message=r".*`torch\.distributed\..*` is deprecated", category=FutureWarning)


def train(config_path: str, overrides: Sequence[str]) -> int:
    """Run the training loop on this rank; returns the exit code."""
    from smol_train.config import RunConfig

    config = load(RunConfig, config_path, overrides)

    quiet_known_warnings()
    # Below here torch and Megatron-Core load, which takes seconds; a faulty configuration has already been refused.
    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.checkpointing import Checkpointing, SaveCosts
    from smol_train.callbacks.devices import DeviceMetrics
    from smol_train.callbacks.evaluation import HeldOutEvaluation
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.callbacks.noise_scale import GradientNoiseScale
    from smol_train.callbacks.parameter_norms import ParameterNorms
    from smol_train.callbacks.profiling import Profiling
    from smol_train.callbacks.progress import Progress
    from smol_train.callbacks.prometheus import PrometheusFile
    from smol_train.callbacks.rank_report import RankReport
    from smol_train.callbacks.signals import StopOnSignal, TriggerFiles
    from smol_train.callbacks.spikes import SpikeReports
    from smol_train.callbacks.tracker import Tracker
    from smol_train.callbacks.watchdog import Watchdog, collective_timeout
    from smol_train.determinism import deterministic
    from smol_train.parallel import process_groups
    from smol_train.run_lock import run_lock
    from smol_train.trainer import Trainer

    run = Path(config.train.output_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(config.train.deterministic))
        ranks = stack.enter_context(process_groups(config.parallel, config.train.seed, collective_timeout(config.watchdog)))
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", force=True)
        logging.getLogger("smol_train").setLevel(logging.INFO if ranks.is_main else logging.WARNING)
        stack.enter_context(run_lock(run, ranks))
        alerts = stack.enter_context(Alerts(config.alerts, run, ranks.is_main))
        watchdog = stack.enter_context(Watchdog(config.watchdog, run, ranks, alerts))
        devices = DeviceMetrics()
        checkpointing = Checkpointing(alerts)
        callbacks = [
            watchdog,
            StopOnSignal(),
            TriggerFiles(),
            SpikeReports(alerts),
            HeldOutEvaluation(),
            GradientNoiseScale(),
            ParameterNorms(),
            devices,
            RankReport(config.logging, alerts, devices),
            SaveCosts(checkpointing),
            MetricsWriter(),
            Tracker(config.logging),
            PrometheusFile(config.logging.prometheus_file),
            Progress(),
            checkpointing,
            Profiling(config.profiling, ranks),
            alerts,
        ]
        trainer = Trainer(config, ranks, callbacks)
        gc.freeze()  # what is here stays: the collection in each of Megatron-Core's saves would take half a second over it
        return trainer.fit()


if __name__ == "__main__":
    sys.exit(main())
