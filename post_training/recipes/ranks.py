"""The processes of a run: how srun's and torchrun's become accelerate's, how they shard, how they wait for the data.

    python -m post_training sft ...                                  one process
    torchrun --nproc-per-node 8 -m post_training sft ...             one node
    srun ... python -m post_training sft ...                         a cluster, one task a rank (slurm/jobs/post_training.sh)

accelerate's launcher works too, but hides exit codes; what its configuration file says is read here (train.accelerate).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import smol_lock
from post_training.prepare import Prepared, prepare
from post_training.recipes.config import RecipeConfig
from smol_config import UserError, load_mapping, nearest

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
LONGEST_PREPARATION = timedelta(hours=24)
"""The others wait so long for rank 0 to prepare the data; collectives while training have their own, shorter limit."""
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def adopt_slurm() -> None:
    """Give srun's tasks the names that torch and accelerate read, where run.sh has set MASTER_ADDR."""
    if "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        os.environ.update({ours: os.environ[theirs] for ours, theirs in _SLURM.items() if theirs in os.environ})


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def accumulation(config: RecipeConfig, count: int) -> int:
    """Micro-batches that each of `count` processes takes in a step; raises UserError where the global batch does not divide."""
    micro, whole = config.train.micro_batch_size, config.train.global_batch_size
    if whole % (micro * count):
        raise UserError(
            f"train.global_batch_size={whole} is not a multiple of train.micro_batch_size={micro} x {count} processes; "
            "change one of them"
        )
    return whole // (micro * count)


def sharding(config: RecipeConfig) -> dict[str, Any]:
    """What transformers' TrainingArguments take of the file train.accelerate: fsdp and fsdp_config, deepspeed, or nothing.

    Raises UserError for a file that cannot be read or asks for something else.
    """
    name = config.train.accelerate
    if name is None:
        return {}
    shipped = CONFIGS / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = [file.stem for file in CONFIGS.glob("*.yaml")]
        raise UserError(f"train.accelerate={name} is neither a file nor one of configs/accelerate; {nearest(name, known)}")
    mapping = load_mapping(path)
    kind = mapping.get("distributed_type")
    if kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        return {}
    if kind == "FSDP" and mapping.get("fsdp_config", {}).get("fsdp_version") == 2:
        # FSDP's own checkpointing gathers no weights twice, as the trainer's would.
        own = {"fsdp_activation_checkpointing": config.train.activation_checkpointing}
        return {"fsdp": True, "fsdp_config": mapping["fsdp_config"] | own, "activation_checkpointing": False}
    if kind == "DEEPSPEED" and (file := mapping.get("deepspeed_config", {}).get("deepspeed_config_file")):
        return {"deepspeed": str(path.with_name(Path(file).name))}
    raise UserError(
        f"train.accelerate={name}: distributed_type={kind} is neither MULTI_GPU, FSDP with fsdp_version 2 nor DEEPSPEED with a "
        "deepspeed_config_file; see configs/accelerate"
    )


def check_sharded(config: RecipeConfig, accelerator: Any) -> None:
    """Raise UserError where several processes are to share the weights and each would hold them all, as on CPUs."""
    kind = str(accelerator.distributed_type.value)
    if sharding(config) and accelerator.num_processes > 1 and kind not in ("FSDP", "DEEPSPEED"):
        raise UserError(
            f"train.accelerate={config.train.accelerate}: accelerate does not shard over these {accelerator.num_processes} "
            f"processes ({kind}), but on GPUs alone; use ddp"
        )


@contextmanager
def run_lock(run: Path, patience_seconds: float = 10.0) -> Iterator[None]:
    """Hold RUN/lock, asked for by rank 0; raises UserError on all where another run works there. Process groups are up."""
    held: list[TextIO] = []

    def take() -> None:
        file, refusal = smol_lock.take(run, patience_seconds)
        if refusal:
            raise UserError(refusal)
        held.extend([file] if file else [])

    _on_rank_0(take)
    try:
        yield
    finally:
        for file in held:
            smol_lock.give_back(run, file)


def prepare_once(config: RecipeConfig) -> Prepared:
    """The data, prepared by rank 0 while the others wait; what rank 0 refuses is raised on all. Process groups are up."""
    folder = Path(config.train.output_dir) / "data"
    if processes() > 1:
        _on_rank_0(lambda: prepare(config, folder))
    return prepare(config, folder)


def _on_rank_0(do: Callable[[], object]) -> None:
    """Do it there while the others wait; a UserError is raised on all."""
    if processes() == 1:
        do()
        return
    import torch.distributed as dist

    group = dist.new_group(backend="gloo", timeout=LONGEST_PREPARATION)
    refusal: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            do()
        except UserError as error:
            refusal = [str(error)]
    dist.broadcast_object_list(refusal, src=0, group=group)
    dist.destroy_process_group(group)
    if refusal[0]:
        raise UserError(refusal[0])
