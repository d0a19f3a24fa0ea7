"""A recipe's configuration -> the arguments of TRL and peft: the one place that knows both names.

Nothing that matters is left to a default: TRL's differ from transformers' (bf16, activation checkpointing, logging), and both
change between versions.
"""

from typing import Any

from post_training.recipes.config import GrpoConfig, PreferenceConfig, RecipeConfig
from post_training.recipes.ranks import accumulation, processes, sharding

_SCHEDULES = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}
COLLECTIVE_SECONDS = 1800
"""A collective that takes longer has hung. Saving and exporting a model, for which the others wait, stays well below."""


def training_arguments(config: RecipeConfig) -> Any:
    """SFTConfig, DPOConfig, KTOConfig or GRPOConfig; making it brings up the process groups."""
    import trl

    if isinstance(config, GrpoConfig):
        return _grpo_arguments(config)
    loss = config.preference.loss if isinstance(config, PreferenceConfig) else "nll"
    if loss in ("nll", "orpo"):  # ORPO is TRL's SFT trainer with another loss here
        packed = config.data.packing and loss == "nll"
        return trl.SFTConfig(
            **_common(config),
            max_length=config.data.max_length,
            packing=packed,
            packing_strategy="bfd",
            padding_free=False,
            eval_packing=packed,
            shuffle_dataset=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            assistant_only_loss=False,  # the labels are there already
            completion_only_loss=False,
            loss_type="nll",
        )
    assert isinstance(config, PreferenceConfig)
    both: dict[str, Any] = {"beta": config.preference.beta, "max_length": config.data.max_length, "disable_dropout": True}
    if loss == "kto":
        # TRL wants KTO's rows in order; prepare.py has drawn it.
        return trl.KTOConfig(**_common(config) | {"train_sampling_strategy": "sequential"}, **both, loss_type="kto")
    kind = {"dpo": "sigmoid"}.get(loss, loss)
    return trl.DPOConfig(**_common(config), **both, loss_type=[kind], padding_free=False, precompute_ref_log_probs=False)


def _grpo_arguments(config: GrpoConfig) -> Any:
    """Raises UserError where vLLM is asked for and is not there."""
    import trl

    from post_training.recipes.grpo import check_vllm

    check_vllm(config)
    grpo, vllm = config.grpo, config.grpo.vllm
    server: dict[str, Any] = {}
    if vllm:
        place = {"vllm_mode": "server", "vllm_server_base_url": vllm.url} if vllm.url else {"vllm_mode": "colocate"}
        longest = config.data.max_length + grpo.max_answer
        server = place | {"use_vllm": True, "vllm_gpu_memory_utilization": vllm.memory, "vllm_max_model_length": longest}
    return trl.GRPOConfig(
        **_common(config),
        **server,
        num_generations=grpo.answers,
        num_generations_eval=1,
        max_completion_length=grpo.max_answer,
        temperature=grpo.temperature,
        loss_type=grpo.loss,
        scale_rewards=grpo.scale,
        beta=grpo.beta,
        mask_truncated_completions=grpo.mask_truncated,
        num_iterations=1,
        reward_weights=list(config.rewards.weights.values()),
        shuffle_dataset=False,  # TRL's order of a second epoch is another after a resume; prepare.py has drawn one
        disable_dropout=True,  # answers are sampled in training mode
        chat_template_kwargs={"today_date": config.data.today},  # the day's else, and another prompt after a resume
        log_completions=False,
    )


def _common(config: RecipeConfig) -> dict[str, Any]:
    """What all trainers take."""
    import torch

    cuda = torch.cuda.is_available()
    train, optim, schedule = config.train, config.optim, config.optim.schedule
    settings = {
        "output_dir": train.output_dir,
        "num_train_epochs": train.epochs or 1.0,
        "max_steps": train.steps or -1,
        "per_device_train_batch_size": train.micro_batch_size,
        "per_device_eval_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation(config, processes()),
        "average_tokens_across_devices": True,
        "seed": train.seed,
        "data_seed": train.seed,
        "train_sampling_strategy": "random",
        "dataloader_drop_last": True,  # micro-batches that not all processes have one of would be filled up with repeated rows
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": _SCHEDULES[schedule.kind],
        "lr_scheduler_kwargs": {"min_lr_rate": schedule.min_share} if schedule.kind == "cosine" else {},
        "warmup_steps": schedule.warmup_share,
        "optim": "adamw_torch_fused",
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.clip_grad_norm,
        "use_cpu": not cuda,
        "bf16": train.precision == "bf16",
        "activation_checkpointing": train.activation_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "model_init_kwargs": model_arguments(config),
        "save_strategy": "steps",
        "save_steps": _whole(config.checkpoint.every_steps),
        "save_total_limit": None,  # checkpoints.py removes old ones, once a newer one is whole
        "eval_strategy": "steps" if config.data.held_out else "no",
        "eval_steps": config.evaluation.every_steps or 10**9,  # once at the end in any case
        "logging_steps": config.logging.every_steps,
        "logging_nan_inf_filter": False,  # it would show the mean of earlier losses in place of NaN
        "report_to": "none",  # metrics.py writes them
        "disable_tqdm": True,
        "ddp_timeout": COLLECTIVE_SECONDS,
        "ddp_backend": "gloo" if not cuda and processes() > 1 else None,
        "ddp_find_unused_parameters": False,
        "push_to_hub": False,  # checkpoints.py pushes
    }
    return settings | sharding(config)


def model_arguments(config: RecipeConfig) -> dict[str, Any]:
    """How the model is loaded: in fp32, the master weights, which autocast or the sharding computes with in bf16.

    Frozen weights under adapters need no masters.
    """
    frozen = config.lora is not None and config.train.precision == "bf16"
    return {
        "attn_implementation": config.train.attention,
        "dtype": "bfloat16" if frozen else "float32",
        "device_map": None,
    }


def lora_arguments(config: RecipeConfig) -> Any | None:
    """peft's LoraConfig; None where all weights are trained."""
    if config.lora is None:
        return None
    from peft import LoraConfig

    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _whole(steps: float) -> float:
    """transformers takes steps as an integer, and what is below 1 as a share."""
    return int(steps) if steps >= 1 else steps
