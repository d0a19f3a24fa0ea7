"""`synth`: prompts of the configuration -> rows. Killed, or cut off from its server, it goes on when given again."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from post_training.synth.config import SynthConfig
from smol_config import UserError, load
from smol_console import Progress, add_command, short, table


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    command = add_command(
        subparsers,
        "synth",
        "Make rows of preference or of chats with models behind an OpenAI-compatible endpoint. Given again, it goes on.",
        "python -m post_training synth --config configs/post_training/synth/pairs.yaml concurrent=64",
    )
    command.add_argument("--config", type=Path, required=True, metavar="C.yaml", help="what is made, and by which models")
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    return make(load(SynthConfig, options.config, options.overrides))


def make(config: SynthConfig) -> int:
    """Make what is not there yet; returns 0, or 130 where it was interrupted. Raises UserError as the parts do."""
    from post_training.synth.client import Client
    from post_training.synth.rows import Rows

    prompts = read_prompts(config)
    places = {"model": config.model} | ({"weak": config.weak} if config.weak else {})
    clients = {place: Client(endpoint, config.attempts, config.timeout_seconds) for place, endpoint in places.items()}
    with Rows(config) as rows:
        todo = [prompt for name, prompt in prompts.items() if name not in rows.done]
        print(f"{config.output_dir}: {len(todo):,} of {len(prompts):,} prompts to do", flush=True)
        try:
            asyncio.run(_make_all(config, clients, todo, rows))
        except KeyboardInterrupt:
            print(f"interrupted; {rows.kept:,} rows stay, give the command again to go on", flush=True)
            return 130
        _report(config, rows)
        if not rows.kept:
            raise UserError(f"no prompt gave a row; {rows.folder / 'left_out.jsonl'} says why of each")
    return 0


def read_prompts(config: SynthConfig) -> dict[str, Any]:
    """By id, each once. Raises UserError for what cannot be read, and for more broken rows than max_broken."""
    import xxhash

    from post_training.mixture import RowChoice
    from post_training.normalise import BrokenRow, Normaliser, flag, split_system
    from post_training.sources import find, records
    from post_training.synth.makers import Prompt

    source, found = config.prompts, find(config.prompts)
    normalise, prompts, broken = Normaliser(source), {}, []
    choice = RowChoice(source.name, sum(found.rows), source.share or 1.0, config.seed)
    first = 0
    for file, count in zip(found.files, found.rows, strict=True):
        taken = choice.times(first, count)
        first += count
        for number, record in records(source, file):
            if not taken[number]:
                continue
            try:
                sample = normalise(record)
            except BrokenRow as fault:
                broken.append(f"row {number} of {file}: {fault}")
                continue
            system, turns = split_system(sample.messages)
            mode = flag(system)
            assert mode, "prompts have it in their system message"
            said = "\n".join(line for line in system.splitlines() if line.split() != [f"/{mode}"])
            messages = [*([{"role": "system", "content": said}] if said else []), *turns]
            identity = xxhash.xxh64_hexdigest(json.dumps([messages, mode, sample.kept]))
            prompts[identity] = Prompt(identity, messages, mode, sample.kept)
    if len(broken) > source.max_broken:
        raise UserError(
            f"dataset {source.name}: {len(broken):,} rows cannot be used, such as {broken[0]}; mend them, or let "
            f"prompts.max_broken={source.max_broken} allow them"
        )
    return prompts


async def _make_all(config: SynthConfig, clients: dict[str, Any], todo: list[Any], rows: Any) -> None:
    from post_training.synth.client import LeftOut, Usage
    from post_training.synth.makers import Maker

    maker, waiting, faults = Maker(config, clients), iter(todo), []
    with Progress("making", "prompts", len(todo)) as progress:

        async def work() -> None:
            for prompt in waiting:
                usages = {place: Usage() for place in clients}
                try:
                    row = await maker(prompt, usages)
                except LeftOut as reason:
                    rows.leave_out(prompt.id, reason, usages)
                else:
                    rows.keep(prompt.id, row, usages)
                progress.advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(config.concurrent, len(todo))):
                    group.create_task(work())
        except* UserError as fault:
            faults = list(fault.exceptions)
        finally:
            for client in clients.values():
                await client.close()
    if faults:
        raise faults[0]


def _report(config: SynthConfig, rows: Any) -> None:
    """What was made and what it cost, over all commands that made it: printed, and in report.json."""
    report: dict[str, Any] = {"kept": rows.kept, "left_out": dict(rows.left_out.most_common()), "models": {}}
    lines = []
    for place, endpoint in {"model": config.model, "weak": config.weak}.items():
        if endpoint is None:
            continue
        used, price = rows.usage[place], endpoint.price
        cost = (used.input * price.input + used.output * price.output) / 1e6 if price else None
        report["models"][place] = {"model": endpoint.model, "input": used.input, "output": used.output, "dollars": cost}
        lines.append([endpoint.model, short(used.input), short(used.output), "?" if cost is None else f"{cost:,.2f}"])
    (rows.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    left = ", ".join(f"{count:,} {kind}" for kind, count in report["left_out"].items()) or "none"
    print(f"wrote {rows.folder / 'rows.jsonl'}: {rows.kept:,} rows; left out: {left}")
    print(table(["model", "tokens in", "tokens out", "dollars"], lines))
