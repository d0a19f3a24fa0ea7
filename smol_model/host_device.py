"""Lets megatron.core run on hosts without CUDA; does nothing where CUDA is there.

Megatron-Core names its device in its source: `torch.cuda.current_device()`, `device="cuda"`, `x.cuda()`. On a host
without CUDA this file rewrites those names in the syntax tree of megatron.core's modules while they are imported, and
only there: torch itself and every other library stay untouched, and no source changes on disk. What was compiled is kept in
megatron.core's `__pycache__` under a name of its own, since rewriting all modules takes half of a command's start. Six rules:

    torch.cuda, from torch.cuda import x   ->  HOST_CUDA (below)       streams, events, RNG, memory, NVTX
    f(device="cuda"), def f(d="cuda")      ->  "cpu"                   found_inf, gradient norm, token counts
    "torch.cuda.BFloat16Tensor"            ->  "torch.BFloat16Tensor"  the optimizer's comparison with Tensor.type()
    x.cuda()                               ->  x.to("cpu")
    f(pin_memory=True)                     ->  f(pin_memory=False)
    torch.matmul(x, y), x.matmul(y)        ->  host_matmul(x, y)       bf16 on a CPU that has no instructions for it

tests/smol_model/test_host_device.py pins the number of rewritten places for the pinned megatron-core, so that an upgrade
cannot change what is rewritten unseen. Processes that a library *spawns* import this package again through __main__.
"""

import ast
import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import marshal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_PACKAGE = "megatron.core"
_FACADE = "__host_cuda__"
_MATMUL = "__host_matmul__"
_CACHE_TAG = "smolhost"  # megatron/core/__pycache__/utils.cpython-311.opt-smolhost.pyc
_NAMES = [ast.alias("HOST_CUDA", _FACADE), ast.alias("host_matmul", _MATMUL)]

rewritten: Counter[str] = Counter()
"""Places rewritten so far, by rule; empty where CUDA is there."""


def register() -> None:
    """Put the rewriting importer in front; whether it acts is decided when megatron.core is first imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PACKAGE and not name.startswith(_PACKAGE + "."):
            return None
        import torch  # here, not above: configs and plans import this package without torch

        if torch.cuda.is_available():
            return None
        if name == _PACKAGE:
            # One generator serves "CPU" and "CUDA" here, so every fork of the RNG tracker changes it: expected.
            logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
                lambda record: "CPU RNG state changed" not in record.getMessage()
            )
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _RewritingLoader(spec.loader.name, spec.loader.path)
        return spec


class _RewritingLoader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        """The rewritten source's code, from a file beside the bytecode that other programs share."""
        path = self.get_filename(fullname)
        cache = importlib.util.cache_from_source(path, optimization=_CACHE_TAG)
        made_of = (importlib.util.MAGIC_NUMBER, _rules(), *self.path_stats(path).values())
        try:
            cached_of, found, code = marshal.loads(self.get_data(cache))
        except (OSError, EOFError, ValueError, TypeError):  # not there, or cut short
            cached_of = None
        if cached_of != made_of:
            code, found = _compile(self.get_data(path), path)
            if not sys.dont_write_bytecode:  # set_data writes beside and renames; where it may not write, it says nothing
                self.set_data(cache, marshal.dumps((made_of, found, code)))
        rewritten.update(found)
        return code

    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        if module.__name__ == f"{_PACKAGE}.jit":
            # Compiling chains of pointwise operations means C++ builds and no gain on a host; later importers copy
            # the decorator, so it is switched off before they run.
            module.disable_jit_fuser()


@functools.cache
def _rules() -> bytes:
    """Changes with this file, and so with the rules."""
    return importlib.util.source_hash(Path(__file__).read_bytes())


def _compile(source: bytes, path: str) -> tuple[types.CodeType, dict[str, int]]:
    """The code of the rewritten source, and how many places each rule rewrote."""
    rewriter = _Rewriter()
    tree = rewriter.visit(ast.parse(source, path))
    if rewriter.found:
        first = next(i for i, statement in enumerate(tree.body) if not _must_stay_first(statement))
        tree.body.insert(first, ast.ImportFrom(__name__, _NAMES, 0))
    code: types.CodeType = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
    return code, dict(rewriter.found)


def _must_stay_first(statement: ast.stmt) -> bool:
    is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_docstring or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")


class _Rewriter(ast.NodeTransformer):
    """Applies the six rules to one module and counts the places."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def _replace(self, rule: str, old: ast.AST, new: Any) -> Any:
        self.found[rule] += 1
        return ast.copy_location(new, old)

    def _device(self, node: Any) -> Any:
        if isinstance(node, ast.Constant) and node.value == "cuda":
            return self._replace("device argument", node, ast.Constant("cpu"))
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return self._replace("torch.cuda", node, ast.Name(_FACADE, ast.Load()))
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.AST]:
        if node.module != "torch.cuda" or node.level:
            return node
        return [
            self._replace(
                "torch.cuda",
                node,
                ast.Assign(
                    [ast.Name(alias.asname or alias.name, ast.Store())],
                    ast.Attribute(ast.Name(_FACADE, ast.Load()), alias.name, ast.Load()),
                ),
            )
            for alias in node.names
        ]

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and node.value.startswith("torch.cuda.") and node.value.endswith("Tensor"):
            return self._replace("tensor type name", node, ast.Constant(node.value.replace("torch.cuda.", "torch.")))
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.defaults = [self._device(default) for default in node.defaults]
        node.kw_defaults = [default and self._device(default) for default in node.kw_defaults]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [self._device(argument) for argument in node.args]
        for keyword in node.keywords:
            keyword.value = self._device(keyword.value)
            pinned = keyword.arg == "pin_memory" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if pinned:
                keyword.value = self._replace("pin_memory", keyword.value, ast.Constant(False))
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "cuda" and not _is_torch(function.value):
            to_cpu = ast.copy_location(ast.Attribute(function.value, "to", ast.Load()), function)
            others = [keyword for keyword in node.keywords if keyword.arg != "device"]
            node = self._replace("x.cuda()", node, ast.Call(to_cpu, [ast.Constant("cpu")], others))
        if isinstance(function, ast.Attribute) and function.attr == "matmul" and not node.keywords:
            factors = node.args if _is_torch(function.value) else [function.value, *node.args]
            node = self._replace("matmul", node, ast.Call(ast.Name(_MATMUL, ast.Load()), factors, []))
        return self.generic_visit(node)


def _is_torch(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


# --- products of bf16 matrices ---------------------------------------------------------------------------------------------


@functools.cache
def _has_bf16_kernels() -> bool:
    """Whether oneDNN multiplies bf16 on this CPU (AVX-512 or its like); AVX2 alone leaves it to torch's loops."""
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def host_matmul(left: Any, right: Any) -> Any:
    """left @ right, in the dtype of both.

    Without bf16 kernels, bf16 is multiplied in fp32 and rounded once, as they would: the same to the last rounding, and three
    to ten times as fast as torch's loops (1024 x 128 x 4096 on one AVX2 core: 24 ms against 254 ms).
    """
    import torch

    if left.dtype is right.dtype is torch.bfloat16 and not _has_bf16_kernels():
        return torch.matmul(left.float(), right.float()).bfloat16()
    return torch.matmul(left, right)


# --- what `torch.cuda` means to megatron.core on such a host: one device, one implicit stream, one generator ----------------


class _Stream:
    """The one stream: everything on it has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()


class _Event:
    """A point in time; `elapsed_time` is in milliseconds, as torch.cuda.Event's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "_Event") -> float:
        return (end.seconds - self.seconds) * 1e3


def _constant(value: Any = None) -> Callable[..., Any]:
    return lambda *_, **__: value


def _host_cuda() -> types.SimpleNamespace:
    import torch

    cpu = torch.device("cpu")
    stream = _Stream()

    def in_place(*_: Any, **__: Any) -> Any:
        return contextlib.nullcontext()

    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    nothing, zero = _constant(), _constant(0)
    return types.SimpleNamespace(
        Stream=_Stream,
        Event=_Event,
        is_available=_constant(False),
        device_count=_constant(1),
        current_device=_constant(cpu),
        current_stream=_constant(stream),
        default_stream=_constant(stream),
        stream=in_place,
        device=in_place,
        synchronize=nothing,
        set_device=nothing,
        set_stream=nothing,
        empty_cache=nothing,
        reset_peak_memory_stats=nothing,
        _lazy_init=nothing,
        _lazy_call=lambda function, **_: function(),
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=get_rng_state,
        set_rng_state=set_rng_state,
        random=types.SimpleNamespace(get_rng_state=get_rng_state, set_rng_state=set_rng_state),
        default_generators={cpu: torch.default_generator},  # indexed by current_device()
        memory_allocated=zero,
        max_memory_allocated=zero,
        memory_reserved=zero,
        memory_stats=lambda *_, **__: {},
        nvtx=types.SimpleNamespace(range_push=nothing, range_pop=nothing, range=in_place),
    )


class _HostCuda:
    """Answers the calls above; everything else (types such as OutOfMemoryError) is torch.cuda's own."""

    def __getattr__(self, name: str) -> Any:
        import torch

        if "_answers" not in self.__dict__:
            self.__dict__["_answers"] = _host_cuda()
        return getattr(self.__dict__["_answers"], name, None) or getattr(torch.cuda, name)


HOST_CUDA = _HostCuda()
