"""`prepare`: the token datasets that a configuration needs, from published repositories to verified folders.

    catalogue -> DIR/NAME under --text-root -> rules, held-out split -> tokenize -> data.datasets[NAME], data.held_out[NAME]

Given again, the command goes on: files that are there are not fetched, shards that are made are hashed and kept, a finished
folder is checked and left alone. A dataset that cannot be prepared is said in one line, and the others are done. Text that the
user has put into DIR/NAME is taken as it is, for datasets whose repositories hold no text that can be read.

**Held out.** Of every dataset the documents whose number (a hash of text and seed, uniform in [0, 1)) is below
--held-out-share are kept from training, also where the configuration evaluates on no part of that dataset: so a folder does
not depend on which configuration made it, and a text that stands in two datasets is trained on in neither. data.held_out[NAME]
gets these documents of NAME.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from data_tools.catalogue import find_catalogue, load_catalogue
from data_tools.dataset_text import DatasetText, open_text
from data_tools.hub_files import Hub, MissingText
from data_tools.output import sweep
from data_tools.prepare_plan import Job, Side, Source, check_source, plan_jobs, plan_table, space_lines, write_source
from data_tools.run_config import DataRun, load_data_run
from data_tools.tokenize_text import EXECUTORS, TokenizeSettings, parse_slurm, tokenize
from data_tools.tokenizer_file import TokenizerFile, open_tokenizer
from data_tools.verify import verify_folder
from smol_config import UserError
from smol_console import add_command, short, whole_number

HELD_OUT_SHARDS = 64  # at most, of a thousandth of a dataset


def add_parser(subparsers: Any) -> None:
    """Add `prepare` to the command line."""
    parser = add_command(
        subparsers,
        "prepare",
        "Download, filter, tokenise and verify the datasets that a configuration needs; given again, it goes on.",
        "python -m data_tools prepare --config configs/smollm3/pretrain.yaml --text-root text --dry-run",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="C.yaml", help="configuration of a run")
    parser.add_argument(
        "--text-root", type=Path, required=True, metavar="DIR", help="the text of dataset NAME goes to DIR/NAME"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    parser.add_argument("--datasets", metavar="A,B", help="only these (default: all that the run reads or evaluates on)")
    parser.add_argument("--catalogue", type=Path, metavar="FILE", help="default: catalogue.yaml beside the configuration")
    parser.add_argument(
        "--hub-root", type=Path, metavar="DIR", help="take repositories from DIR/org/name, a mirror or clones, not from the Hub"
    )
    parser.add_argument(
        "--max-gigabytes", type=whole_number(1), metavar="N", help="of each dataset's files, evenly spaced ones (default: all)"
    )
    parser.add_argument("--downloads", type=whole_number(1), default=8, metavar="N", help="files at a time (default 8)")
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="processes that tokenise (default: cores)")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where shards are made (default local)")
    parser.add_argument("--slurm", default="", metavar="KEY=VALUE,...", help="of the jobs: partition and time, also cpus, mem")
    parser.add_argument(
        "--max-broken-lines", type=whole_number(0), default=0, metavar="N", help="JSON lines to leave out of each (default 0)"
    )
    parser.add_argument(
        "--held-out-share", type=_share, default=0.001, metavar="X", help="documents kept from training (default 0.001)"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="of the held-out choice and the document shuffle (default 0)",
    )
    parser.add_argument("--full-check", action="store_true", help="read every byte of folders that were finished before")
    parser.add_argument("--delete-text", action="store_true", help="delete fetched text once its tokens are verified")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; all datasets are gone through, then UserError is raised when one is not prepared."""
    of_run = load_data_run(options.config, options.overrides, keep_unset=options.dry_run)
    file = options.catalogue or find_catalogue(options.config)
    chosen = options.datasets.split(",") if options.datasets else None
    jobs = plan_jobs(of_run, load_catalogue(file) if file else None, options.text_root, chosen)
    if not options.held_out_share and (held_out := [job.name for job in jobs if "held_out" in job.targets]):
        raise UserError(
            f"--held-out-share 0 leaves no document for data.held_out of {', '.join(held_out)}; give a share above 0"
        )
    slurm = _slurm(options)
    if options.dry_run:
        show_plan(jobs, of_run, options)
        return
    tokenizer = _tokenizer(of_run.data.tokenizer, options.hub_root)
    preparation = Preparation(tokenizer, Hub(options.hub_root, options.downloads), slurm, options)
    failed = []
    for job in jobs:
        try:
            preparation.prepare(job)
        except UserError as error:
            failed.append(job.name)
            print(f"{'missing' if isinstance(error, MissingText) else 'failed'}: {_described(job)}: {error}", file=sys.stderr)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or "what is there is kept, and the same command goes on") from stop
        except OSError as error:  # a disk that is full or gone will not serve the next dataset either
            raise UserError(f"{job.name}: {error}; give the same command again when that is mended") from error
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} datasets are not prepared ({', '.join(failed)}); the lines above say what to do"
        )


def show_plan(jobs: list[Job], of_run: DataRun, options: argparse.Namespace) -> None:
    """Print what would be done, what room it takes, and what cannot be done."""
    vocab_size = (of_run.mapping.get("model") or {}).get("vocab_size")
    token_size = 2 if isinstance(vocab_size, int) and vocab_size <= 2**16 else 4
    print(plan_table(jobs, token_size, options.max_gigabytes))
    print("\n".join(["", *space_lines(jobs, options.text_root)]))
    obstacles: dict[str, list[str]] = {}
    for job in jobs:
        if job.state == "not preparable":
            obstacles.setdefault(job.obstacle, []).append(job.name)
    for obstacle, names in obstacles.items():
        print(f"\nnot preparable: {', '.join(names)}: {obstacle}")


def _tokenizer(name: str, mirror: Path | None) -> TokenizerFile:
    """The configuration's tokenizer, from the mirror if it is there."""
    return open_tokenizer(str(mirror / name) if mirror and (mirror / name).is_dir() else name)


def _described(job: Job) -> str:
    """`dclm (mlfoundations/dclm-baseline-1.0, 27,838 files, 7,000 GB)`, with what is known of it."""
    listing, entry = job.listing, job.entry
    count = f"{len(listing.files):,} files" if listing else f"files {' '.join(entry.files)}" if entry and entry.files else None
    size = listing.bytes / 1e9 if listing else entry.gigabytes if entry else None
    known = [entry.repository if entry else None, count, f"{size:,.1f} GB" if size else None]
    return f"{job.name} ({', '.join(filter(None, known))})" if any(known) else job.name


def _slurm(options: argparse.Namespace) -> dict[str, str]:
    """The jobs' options; an executor that cannot work is refused before anything is fetched."""
    slurm = parse_slurm(options.slurm)
    if options.executor != "local":
        from data_tools.executors import check_ray, check_slurm_options

        check_ray() if options.executor == "ray" else check_slurm_options(slurm)
    return slurm


def _share(text: str) -> float:
    """An argparse type: a share from 0 to 0.5."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"{value} is not a share from 0 to 0.5")
    return value


class Preparation:
    """What all datasets of one call have in common."""

    def __init__(self, tokenizer: TokenizerFile, hub: Hub, slurm: dict[str, str], options: argparse.Namespace) -> None:
        self.tokenizer, self.hub, self.slurm, self.options = tokenizer, hub, slurm, options

    def prepare(self, job: Job) -> None:
        """Make what is missing of a dataset and verify all of it.

        Raises MissingText when its text is not within reach, UserError when text or a finished folder is not usable.
        """
        sources = {side: self._source(job, side) for side in job.targets}
        for side, folder in job.targets.items():
            check_source(folder, sources[side])
        todo = job.todo
        if todo:
            text = self._text(job)
            with_slurm = False
            for side, folder in todo.items():
                write_source(folder, sources[side].model_copy(update={"commit": text.commit}))
                with_slurm |= not self._tokenize(job, text, side, folder)
            if with_slurm:
                print(f"{job.name}: with Slurm; give the same command again when its jobs are done")
                return
        for side, folder in job.targets.items():
            sweep(folder)
            self._verify(job.name, folder, full=side in todo or self.options.full_check)
        if self.options.delete_text and job.listing is not None:
            shutil.rmtree(job.text)
            print(f"{job.name}: deleted {job.text}")

    def _source(self, job: Job, side: Side) -> Source:
        entry, options = job.entry, self.options
        of_entry = entry.model_dump(include={"repository", "revision", "files", "filter", "licence"}) if entry else {}
        return Source(
            **of_entry,
            max_gigabytes=options.max_gigabytes,
            text_key=(entry.text_key if entry else None) or "text",
            side=side,
            held_out_share=options.held_out_share,
            seed=options.seed,
        )

    def _text(self, job: Job) -> DatasetText:
        """The dataset's text, fetched if need be."""
        if not job.has_own_text:
            if job.entry is None or not job.entry.can_be_prepared:
                raise MissingText(job.obstacle)
            listing = self.hub.listing(job.entry, job.text, self.options.max_gigabytes)
            self.hub.fetch(listing, job.text)
        return open_text(job.text, job.entry)

    def _tokenize(self, job: Job, text: DatasetText, side: Side, folder: Path) -> bool:
        """Make one folder of tokens; whether it is there now, and not in the hands of Slurm."""
        from data_tools.prepare_steps import CatalogueRules, HeldOut

        options, inputs = self.options, text.inputs
        rules = [CatalogueRules(list(text.rules))] if text.rules else []
        held_out = [HeldOut(side, options.held_out_share, options.seed)] if options.held_out_share else []
        identity = {"rules": [rule.model_dump() for rule in text.rules], "side": side, "held out": options.held_out_share}
        settings = TokenizeSettings(
            inputs,
            folder,
            self.tokenizer,
            tasks=None if side == "train" else min(len(inputs.files), HELD_OUT_SHARDS, 1 + inputs.bytes // 2**30),
            seed=options.seed,
            steps=(*rules, *held_out),
            steps_identity=json.dumps(identity),
            workers=options.workers,
            max_broken_lines=options.max_broken_lines,
            executor=options.executor,
            slurm=self.slurm,
        )
        what = "held-out documents of " if side == "held_out" else ""
        print(f"{job.name}: tokenising {what}{len(inputs.files):,} files, {inputs.bytes:,} bytes", file=sys.stderr, flush=True)
        return tokenize(settings) is not None

    def _verify(self, name: str, folder: Path, full: bool) -> None:
        """Check a finished folder against its manifest, and that it is of the configuration's tokenizer."""
        verdict = verify_folder(folder, self.options.workers or os.cpu_count() or 1, quick=not full)
        if verdict.faults or verdict.manifest is None:
            raise UserError(
                f"{folder} is damaged: {'; '.join(verdict.faults)}; remove the folder and give the same command again"
            )
        manifest = verdict.manifest
        if manifest.tokenizer.sha256 != self.tokenizer.sha256:
            raise UserError(
                f"{folder} was made by tokenizer {manifest.tokenizer.name}, data.tokenizer is {self.tokenizer.name}, which is "
                "another; remove the folder, or name its tokenizer"
            )
        looked = "every byte" if full else "sizes and indexes"
        documents, tokens = f"{manifest.documents:,} documents", f"{short(manifest.tokens)} tokens"
        print(f"ok: {name}: {folder}: {documents}, {tokens}, {looked} checked")
