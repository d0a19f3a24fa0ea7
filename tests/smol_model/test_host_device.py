"""megatron.core on a host without CUDA: what is rewritten is pinned, and nothing outside it is touched."""

import json
import marshal
import subprocess
import sys
from collections import Counter
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import torch
from tiny_runs import REPOSITORY

from smol_model import host_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is rewritten where CUDA is there")


def in_new_process(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout.splitlines()[-1]


def test_the_number_of_rewritten_places_is_known_for_megatron_core_0_16_1() -> None:
    code = """
import importlib.metadata, json, torch
before = {name: value for name, value in vars(torch.cuda).items()}
import smol_train.trainer
from smol_model.host_device import rewritten
unchanged = all(vars(torch.cuda).get(name) is value for name, value in before.items())
print(json.dumps([importlib.metadata.version("megatron-core"), rewritten, unchanged]))
"""
    version, rewritten, unchanged = json.loads(in_new_process(code))
    assert version == "0.16.1", "another megatron-core: read what host_device.py now rewrites, then pin the new numbers"
    assert rewritten == {
        "torch.cuda": 320,
        "device argument": 75,
        "x.cuda()": 11,
        "tensor type name": 9,
        "pin_memory": 6,
        "matmul": 11,
    }
    assert unchanged, "torch.cuda itself must stay as it is"


def test_nothing_is_rewritten_where_cuda_is_there() -> None:
    code = """
import importlib.machinery, sys, torch
torch.cuda.is_available = lambda: True  # for this check only: what the importer asks
import smol_model
from smol_model.host_device import _Finder, rewritten
finder = next(f for f in sys.meta_path if isinstance(f, _Finder))
import megatron
print(finder.find_spec("megatron.core", megatron.__path__), dict(rewritten))
"""
    assert in_new_process(code) == "None {}"


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> host_device._RewritingLoader:
    """Of a module that names the device once; what it counts and compiles is this test's alone."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(host_device, "rewritten", Counter())
    (tmp_path / "made.py").write_text('"""A module."""\ndevice = dict(device="cuda")\n')
    return host_device._RewritingLoader("megatron.core.made", str(tmp_path / "made.py"))


def device(loader: host_device._RewritingLoader) -> str:
    names: dict[str, dict[str, str]] = {}
    exec(loader.get_code("megatron.core.made"), names)
    return names["device"]["device"]


def test_rewritten_code_is_compiled_once(loader: host_device._RewritingLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device(loader) == "cpu"
    folder = Path(loader.path).parent / "__pycache__"
    assert [file.name for file in folder.iterdir()] == [f"made.{sys.implementation.cache_tag}.opt-smolhost.pyc"]
    monkeypatch.setattr(host_device, "_compile", None)
    assert device(loader) == "cpu" and host_device.rewritten == {"device argument": 2}, "a count for each import"


def test_code_of_another_source_or_of_other_rules_or_cut_short_is_compiled_anew(
    loader: host_device._RewritingLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cached = Path(loader.path), Path(cache_from_source(loader.path, optimization="smolhost"))
    assert device(loader) == "cpu"
    source.write_text('device = dict(device="cuda", more=1)\n')
    with monkeypatch.context() as no_rule:
        no_rule.setattr(host_device._Rewriter, "_device", lambda self, node: node)
        assert device(loader) == "cuda", "another source"
    assert device(loader) == "cuda", "nothing says that the rules are others"
    monkeypatch.setattr(host_device, "_rules", lambda: b"others")
    assert device(loader) == "cpu"
    whole = cached.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no code at all", marshal.dumps(("two", "parts"))):
        cached.write_bytes(damaged)
        assert device(loader) == "cpu" and cached.read_bytes() == whole


def test_configs_load_without_torch() -> None:
    code = "import smol_model.config, smol_data.config, smol_train.config, sys; print('torch' in sys.modules)"
    assert in_new_process(code) == "False"


@pytest.mark.parametrize("kernels", [True, False])
def test_products_of_bf16_are_rounded_once_with_or_without_kernels_for_them(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_device, "_has_bf16_kernels", lambda: kernels)
    generator = torch.Generator().manual_seed(6)
    left, right = (torch.randn(shape, generator=generator).bfloat16() for shape in ((3, 64, 256), (256, 32)))
    product = host_device.host_matmul(left, right)
    exact = left.double() @ right.double()
    assert product.dtype is torch.bfloat16
    assert torch.all((product.double() - exact).abs() <= exact.abs() / 256 + 1e-5), (
        "half a unit in the last place, and sums in fp32"
    )
    assert host_device.host_matmul(left.float(), right.float()).dtype is torch.float32
