"""megatron.core on a host without CUDA: what is rewritten is pinned, and nothing outside it is touched."""

import json
import subprocess
import sys

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
