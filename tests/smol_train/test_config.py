"""Every rule between settings, raised once each with its setting, its values and its remedy."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest

import smol_config
from smol_config import ConfigError, Section
from smol_train.config import RunConfig


def mapping() -> dict[str, Any]:
    """A small run without faults."""
    return {
        "model": {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "vocab_size": 96},
        "parallel": {},
        "data": {
            "tokenizer": "t",
            "sequence_length": 32,
            "datasets": {"code": "folder/code", "web": "folder/web"},
            "stages": [
                {"name": "stable", "steps": 8, "weights": {"code": 0.5, "web": 0.5}},
                {"name": "decay", "steps": 2, "weights": {"web": 1}},
            ],
        },
        "train": {"output_dir": "o", "global_batch_size": 8, "micro_batch_size": 2},
        "optim": {"learning_rate": 1.0e-3, "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 2}},
    }


def load(changes: dict[str, Any]) -> RunConfig:
    """The small run with `changes`, which are written as on the command line: section.key or stages' index."""
    changed = mapping()
    for name, value in changes.items():
        target: Any = changed
        *parents, last = name.split(".")
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target.setdefault(key, {})
        target[last] = value
    return smol_config.parse(RunConfig, changed, source="test")


RULES: list[tuple[dict[str, Any], str]] = [
    # model
    (
        {"model.num_query_groups": 3},
        "model.num_attention_heads=4 is not divisible by num_query_groups=3; choose a divisor",
    ),
    (
        {"model.hidden_size": 62},
        "model.hidden_size=62 is not divisible by num_attention_heads=4; set head_dim",
    ),
    ({"model.head_dim": 15}, "model.head_dim=15 is odd"),
    ({"model.hidden_size": 60}, "model.head_dim=15 is odd"),
    ({"model.no_rope": [1, 4, -1]}, "model.no_rope: layers [-1, 4] do not exist; num_layers=4 gives 0 to 3"),
    # data
    ({"data.stages.0.tokens": 100}, "data.stages.0.steps=8 and tokens=100: give one of the two"),
    ({"data.stages.1.steps": None}, "data.stages.1.steps=None and tokens=None: give one of the two"),
    ({"data.stages.0.weights": {"code": -1, "web": 1}}, "data.stages.0.weights {'code': -1.0} must be finite and not negative"),
    ({"data.stages.0.weights": {"code": float("nan")}}, "data.stages.0.weights {'code': nan} must be finite"),
    ({"data.stages.0.weights": {"code": 0}}, "data.stages.0.weights {'code': 0.0} name no dataset with a share above 0"),
    ({"data.stages.1.weights": {"wep": 1}}, "data.stages.1.weights: 'wep' is not in data.datasets; did you mean 'web'?"),
    ({"data.stages.1.name": "stable"}, "data.stages: names ['stable'] stand more than once"),
    ({"data.skip_samples": [(4, 8), (9, 9)]}, "data.skip_samples: [(9, 9)] are not ranges [first, end) with first < end"),
    # optim
    ({"optim.betas": [0.9, 1.0]}, "optim.betas=[0.9, 1.0] must be at least 0 and below 1"),
    (
        {"optim.schedule.min_learning_rate": 0.1},
        "optim.schedule.min_learning_rate=0.1 is above learning_rate=0.001",
    ),
    ({"optim.schedule.kind": "cosine"}, "optim.schedule.decay_steps=2 only means something with kind: wsd, not cosine"),
    ({"optim.schedule.milestones": [5]}, "optim.schedule.milestones=[5] with kind: wsd; multi_step needs them"),
    ({"optim.schedule": {"kind": "multi_step"}}, "optim.schedule.milestones=[] with kind: multi_step; multi_step needs them"),
    (
        {"optim.schedule": {"kind": "multi_step", "milestones": [5, 5]}},
        "optim.schedule.milestones=[5, 5] must rise from one to the next",
    ),
    ({"optim.schedule.decay_shape": "exponential"}, "optim.schedule.min_learning_rate=0 with decay_shape: exponential"),
    (
        {"optim.muon": {"momentum": 0.9}},
        "optim.muon is set, but optimizer=adamw does not read it; set optimizer: muon or take it out",
    ),
    (
        {"optim.optimizer": "muon", "optim.ademamix": {"alpha": 4}},
        "optim.ademamix is set, but optimizer=muon does not read it; set optimizer: ademamix or take it out",
    ),
    (
        {"optim.optimizer": "ademamix", "optim.ademamix": {"beta3": 0.8}},
        "optim.ademamix.beta3=0.8 is below betas[0]=0.9; the slow average needs the larger one",
    ),
    # across sections
    ({"model.max_sequence_length": 31}, "data.sequence_length=32 is longer than model.max_sequence_length=31; shorten it, or"),
    ({"parallel.tensor": 3}, "model.num_attention_heads=4 is not divisible by parallel.tensor=3"),
    ({"parallel.tensor": 4, "model.num_query_groups": 2}, "model.num_query_groups=2 is not divisible by parallel.tensor=4"),
    ({"parallel.tensor": 4, "model.ffn_hidden_size": 130}, "model.ffn_hidden_size=130 is not divisible by parallel.tensor=4"),
    ({"parallel.tensor": 4, "model.vocab_size": 97}, "model.vocab_size=97 is not divisible by parallel.tensor=4"),
    ({"parallel.pipeline": 3}, "model.num_layers=4 is not divisible by parallel.pipeline=3; choose a divisor"),
    (
        {"parallel.pipeline": 2, "parallel.virtual_pipeline": 4},
        "model.num_layers=4 is not divisible by parallel.pipeline=2 x parallel.virtual_pipeline=4; choose a divisor",
    ),
    ({"parallel.virtual_pipeline": 2}, "parallel.virtual_pipeline=2 does nothing at parallel.pipeline=1; take it out or"),
    (
        {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2, "train.global_batch_size": 6},
        "train.global_batch_size=6 in rows of train.micro_batch_size=2 leaves 1 over the groups of parallel.pipeline=2",
    ),
    ({"parallel.sequence": True}, "parallel.sequence=true does nothing at parallel.tensor=1"),
    (
        {"parallel.tensor": 4, "parallel.sequence": True, "data.sequence_length": 31},
        "a row of train.micro_batch_size=2 x data.sequence_length=31 tokens is not divisible by parallel.tensor=4",
    ),
    (
        {"parallel.context": 2, "train.backend": "te", "data.sequence_length": 30},
        "data.sequence_length=30 is not a multiple of 2 x parallel.context=2",
    ),
    ({"parallel.context": 2, "train.backend": "torch"}, "parallel.context=2 needs Transformer Engine's attention"),
    ({"train.global_batch_size": 9}, "train.global_batch_size=9 is not divisible by train.micro_batch_size=2"),
    (
        {"train.batch_ramp": [{"until_step": 2, "global_batch_size": 3}]},
        "train.global_batch_size=3 (from step 0 on) is not divisible by train.micro_batch_size=2",
    ),
    (
        {"train.batch_ramp": [{"until_step": step, "global_batch_size": size} for step, size in ((4, 2), (4, 4))]},
        "train.batch_ramp: until_step=[4, 4] must rise from one to the next",
    ),
    (
        {"train.batch_ramp": [{"until_step": step, "global_batch_size": size} for step, size in ((3, 4), (4, 8))]},
        "train.batch_ramp: global_batch_size=[4, 8] must rise from one to the next and stay below global_batch_size=8",
    ),
    (
        {"train.batch_ramp": [{"until_step": 10, "global_batch_size": 4}]},
        "train.batch_ramp: until_step=10 is not inside the run's 10 steps",
    ),
    (
        {"logging.noise_scale_every_steps": 5, "logging.every_steps": 2},
        "logging.noise_scale_every_steps=5 is not a multiple of every_steps=2",
    ),
    (
        {"logging.noise_scale_every_steps": 1, "train.micro_batch_size": 8},
        "logging.noise_scale_every_steps=1 compares two batch sizes, but train.global_batch_size=8 is one micro-batch",
    ),
    ({"optim.schedule.batch_rule": "sqrt"}, "optim.schedule.batch_rule=sqrt does nothing without train.batch_ramp"),
    ({"optim.schedule.warmup_steps": 9}, "warmup_steps=9 and decay_steps=2 do not fit into the run's 10 steps"),
]


def test_the_small_run_has_no_fault() -> None:
    assert load({}).problems() == []


@pytest.mark.parametrize(("changes", "message"), RULES, ids=[str(rule[0]) for rule in RULES])
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(changes)
    assert message in str(caught.value)


def test_faults_of_several_sections_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"parallel.pipeline": 3, "train.global_batch_size": 9, "optim.betas": [1, 1], "data.stages.1.name": "stable"})
    assert str(caught.value).startswith("test: 4 faults\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.micro_batch_size", 0),
        ("train.precision", "fp16"),
        ("train.backend", "jax"),
        ("optim.learning_rate", 0),
        ("optim.optimizer", "sgd"),
        ("optim.schedule.kind", "linear"),
        ("parallel.tensor", -1),
        ("parallel.recompute", "some"),
        ("data.stages", []),
        ("checkpoint.every_minutes", 0),
        ("evaluation.windows", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"test: {name}: .*got "):
        load({name: value})


def test_tokens_of_a_stage_become_whole_steps() -> None:
    config = load({"data.stages.0.tokens": 1025, "data.stages.0.steps": None})
    assert config.tokens_per_step == 256
    assert (config.stage_steps, config.train_steps) == ([5, 2], 7)


def test_a_batch_ramp_makes_a_stage_in_tokens_longer_in_steps() -> None:
    ramp = [{"until_step": 2, "global_batch_size": 2}, {"until_step": 4, "global_batch_size": 4}]
    config = load({"data.stages.0.tokens": 20 * 32 + 1, "data.stages.0.steps": None, "train.batch_ramp": ramp})
    # 2 + 2 + 4 + 4 windows of 32 tokens, then two batches of 8 for the 8 windows and a token that are left.
    assert (config.stage_steps, config.train_steps) == ([6, 2], 8)
    assert [(s.stage, s.steps, s.batch_size) for s in config.segments] == [
        ("stable", 2, 2),
        ("stable", 2, 4),
        ("stable", 2, 8),
        ("decay", 2, 8),
    ]


def test_no_setting_is_null_unless_null_is_its_default() -> None:
    """A key set to null is taken out of the mapping, so null must mean the default."""

    def sections(section: type[Section]) -> set[type[Section]]:
        inner = (field.annotation for field in section.model_fields.values())
        found = {kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)}
        return {section}.union(*map(sections, found))

    for section in sections(RunConfig):
        for name, field in section.model_fields.items():
            if type(None) in getattr(field.annotation, "__args__", ()):
                assert field.default is None, f"{section.__name__}.{name}"


def optional_fields(section: type[Section], at: str = "") -> Iterator[tuple[str, Any]]:
    """(name, default) of every setting that takes null, also of those in lists and optional sections."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if type(None) in kinds:
            yield f"{at}{name}", field.default
        for kind in [*kinds, *(inner for outer in kinds for inner in get_args(outer))]:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from optional_fields(kind, f"{at}{name}.")


def test_null_is_the_default_of_every_setting_that_takes_it() -> None:
    """In a file and on the command line null means: as if it were not set."""
    found = dict(optional_fields(RunConfig))
    assert {"start_from", "checkpoint.every_minutes", "data.stages.tokens"} <= found.keys()
    assert {name: default for name, default in found.items() if default is not None} == {}
