"""What the ranks of the round-trip tests do: load imported checkpoints on a layout, and save what each rank then holds."""

from pathlib import Path

from megatron.core import parallel_state

from smol_model.spec import build_model, transformer_config
from smol_train import checkpoint
from smol_train.checkpoint_folder import read_model_config, read_run_mapping
from smol_train.parallel import ParallelConfig, process_groups


def save_again(checkpoints: dict[Path, Path], tensor: int, pipeline: int, precisions: dict[Path, str]) -> list[int]:
    """Load every checkpoint into real networks of this layout and save them anew, old folder to new one, in one process group.

    Returns this rank's number of elements of each network, embedding of the last pipeline stage included.
    """
    held = []
    with process_groups(ParallelConfig(tensor=tensor, pipeline=pipeline), seed=0):
        ends = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
        sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
        for old, new in checkpoints.items():
            model = read_model_config(old)
            network = build_model(model, transformer_config(model, "torch", precisions[old], **sizes), "torch", 64, *ends)
            checkpoint.load_weights(old, network)
            state = network.sharded_state_dict(metadata={"non_homogeneous_layers": True})
            checkpoint.write_weights_only(new, state, read_run_mapping(old))
            held.append(sum(parameter.numel() for parameter in network.parameters()))
    return held
