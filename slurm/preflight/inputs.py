"""What the configuration names: whether its layout fits the ranks, and whether its datasets are there and fit the model."""

from pathlib import Path

from slurm.preflight.findings import Absent, Finding, Node
from slurm.starts import newest_step
from smol_config import ConfigError
from smol_console import short
from smol_data.manifest import MANIFEST_NAME, DataError
from smol_data.shards import open_datasets
from smol_train.plan import plan


def check_layout(node: Node) -> Finding:
    """Layout and batch against the number of ranks."""
    parallel = node.config.parallel
    shown = f"{node.ranks} ranks, tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context}"
    try:
        plan(node.config, gpus=node.ranks)
    except ConfigError as error:
        return Finding("stop", shown, "fits", str(error))
    return Finding("ok", shown, "fits")


def check_data(node: Node) -> Finding:
    """Manifests, file sizes, tokenizer and vocabulary of the held-out sets and of all datasets of the steps still to come."""
    data, newest = node.config.data, newest_step(node.run)
    ahead = {
        name
        for segment in node.config.segments
        if segment.end_step > max(newest, 0)
        for name, weight in segment.weights.items()
        if weight > 0
    }
    folders = {name: folder for name, folder in data.datasets.items() if name in ahead}
    folders |= {f"held_out.{name}": folder for name, folder in data.held_out.items()}
    missing = [name for name, folder in folders.items() if not (Path(folder) / MANIFEST_NAME).is_file()]
    if missing and node.source:
        raise Absent(f"dataset {missing[0]} comes from {node.source}; staging compares it with its manifest")
    try:
        datasets = open_datasets(folders, data.sequence_length, data.tokenizer, node.config.model.vocab_size)
    except DataError as error:
        return Finding("stop", "", "as the manifests say", str(error))
    for dataset in datasets.values():
        dataset.close()
    tokens = sum(dataset.num_tokens for dataset in datasets.values())
    return Finding("ok", f"{len(datasets)} datasets, {short(tokens)} tokens", "as the manifests say")
