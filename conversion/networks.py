"""The two networks that `verify` compares, each built by its own library and run by its own code, in fp32 on the CPU.

    MegatronNetwork      Megatron-Core's model with a checkpoint's weights
    TransformersNetwork  transformers' model of a Hugging Face folder

Either is loaded whole, by its library's own loader, or *streamed*: the network is built without memory for weights, and each
module gets its own when it runs and loses them afterwards. So a model of any size is compared with one matrix in memory; the
code that computes is the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from conversion import ConversionError
from conversion.megatron_reader import MegatronReader
from conversion.parity import HeadRows, Row
from conversion.safetensors_files import SafetensorsReader
from smol_model.config import ModelConfig
from smol_model.spec import SmolGPT, build_model, transformer_config
from smol_train import checkpoint
from smol_train.optim import METADATA

_META = torch.device("meta")


def stream_weights(network: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Have every module of `network` get its weights when it runs, in fp32, and lose them afterwards.

    `read` gives a parameter by its name in `network`. Of an embedding only the rows that are asked for are filled.
    """
    for prefix, module in network.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if names:
            _stream_module(module, {name: f"{prefix}.{name}" for name in names}, read)


def _stream_module(module: nn.Module, names: dict[str, str], read: Callable[[str], Tensor]) -> None:
    is_embedding = isinstance(module, (nn.Embedding, VocabParallelEmbedding))

    def set_weights(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))

    def load(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensors = {name: read(full_name) for name, full_name in names.items()}
        set_weights({name: _filled(tensor, inputs[0]) if is_embedding else tensor.float() for name, tensor in tensors.items()})

    def drop(*_: Any) -> None:
        set_weights({name: getattr(module, name).to(_META) for name in names})

    drop()
    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)


def _filled(stored: Tensor, ids: Tensor) -> Tensor:
    """An embedding with the rows of `ids`; the others are never written, so they take no memory."""
    weight = torch.empty(stored.shape)
    rows = ids.unique()
    weight[rows] = stored[rows].float()
    return weight


# --- Megatron-Core ---------------------------------------------------------------------------------------------------------


class _HiddenStates(nn.Module):
    """In place of the output layer: hands through what it would multiply."""

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden, None


class MegatronNetwork:
    """A SmolGPT of one process, the torch backend and fp32; process groups must be there."""

    def __init__(self, network: SmolGPT, head: Callable[[], Tensor] | None = None) -> None:
        """`network` is this object's from now on. `head` reads the output matrix, [vocabulary, h], where it has none."""
        tied = network.share_embeddings_and_output_weights
        weight: Tensor = network.shared_embedding_or_output_weight() if tied else network.output_layer.weight
        self._read_head = head or (lambda: weight)
        self.vocab_size: int = network.vocab_size
        network.output_layer = _HiddenStates()
        self._network = network.eval()

    @classmethod
    def load(
        cls, folder: Path, model: ModelConfig, sequence_length: int, dtype: torch.dtype, yarn_factor: float, streamed: bool
    ) -> "MegatronNetwork":
        """The model of a checkpoint, its weights rounded to `dtype`."""
        where = {"use_cpu_initialization": True} if streamed else {}
        config = transformer_config(model, "torch", "fp32", perform_initialization=False, **where)
        with _META if streamed else torch.device("cpu"):
            network = build_model(model, config, "torch", sequence_length, gather_logits=True, yarn_factor=yarn_factor)
        if not streamed:
            checkpoint.load_weights(folder, network)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(parameter.to(dtype))
            return cls(network)
        keys = {name: tensor.key for name, tensor in network.sharded_state_dict(metadata=METADATA).items()}
        reader = MegatronReader(folder, model)
        stream_weights(network, lambda name: reader.read(keys[name]).to(dtype))
        head = "embedding.word_embeddings.weight" if model.tie_embeddings else "output_layer.weight"
        return cls(network, lambda: reader.read(head).to(dtype))

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """As Network.hidden, all documents packed into one row, as in training."""
        documents = [document for row in rows for document in row.documents]
        if torch.cuda.is_available():  # variable-length attention has no fp32 kernel on CUDA: each document alone
            return torch.cat([self._run(document) for document in documents])
        lengths = [len(document) for document in documents]
        borders, longest = torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths)
        packed = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=borders, cu_seqlens_kv=borders, max_seqlen_q=longest, max_seqlen_kv=longest
        )
        return self._run(torch.cat(documents), packed_seq_params=packed)

    def _run(self, ids: Tensor, **options: Any) -> Tensor:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        positions = torch.arange(len(ids), device=device)[None]
        states: Tensor = self._network(ids.to(device)[None], positions, None, **options)
        return states[0].cpu()

    def head(self) -> HeadRows:
        """As Network.head."""
        weight = self._read_head()
        return lambda first, end: weight[first:end].float().cpu()


# --- transformers ----------------------------------------------------------------------------------------------------------


class TransformersNetwork:
    """A causal language model of transformers."""

    def __init__(self, network: Any, head: HeadRows | None = None) -> None:
        """`head` gives rows of the output matrix where `network` has none."""
        self.vocab_size: int = network.config.vocab_size
        self._network = network.eval()
        weight: Tensor = network.get_output_embeddings().weight
        self._head_rows = head or (lambda first, end: weight[first:end].float())

    @classmethod
    def load(cls, folder: Path, streamed: bool) -> "TransformersNetwork":
        """The model of a Hugging Face folder; raises ConversionError when transformers does not take it."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        options = {"attn_implementation": "eager", "dtype": torch.float32, "trust_remote_code": False}
        try:
            if not streamed:
                loader = transformers.AutoModelForCausalLM.from_pretrained
                return cls(loader(folder, local_files_only=True, **options))
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            with _META:
                network = transformers.AutoModelForCausalLM.from_config(config, **options)
        except Exception as error:  # whatever transformers raises, the folder is not one that it loads
            raise ConversionError(f"{folder} does not load with transformers ({' '.join(str(error).split())})") from error
        base, reader = network.base_model, SafetensorsReader(folder)
        base.rotary_emb = type(base.rotary_emb)(network.config)  # computed from the configuration, not stored
        stream_weights(base, lambda name: reader.read(f"{network.base_model_prefix}.{name}"))
        head = f"{network.base_model_prefix}.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        return cls(network, lambda first, end: reader.read(head, slice(first, end)).float())

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """As Network.hidden, each document a sequence of its own; what pads the shorter ones stands behind them."""
        documents = [document for row in rows for document in row.documents]
        states = self._network.base_model(input_ids=pad_sequence(documents, batch_first=True), use_cache=False)[0]
        return torch.cat([states[i, : len(document)] for i, document in enumerate(documents)])

    def head(self) -> HeadRows:
        """As Network.head."""
        return self._head_rows
