"""The `model:` section and what follows from it by arithmetic: parameters, FLOPs per token, KV-cache bytes.

SmolLM3's architecture is the default of every switch; the options are those that its makers weighed against it.
Nothing here imports torch, so plans and dry runs start at once.
"""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from smol_config import Section


class ModelConfig(Section):
    """A decoder-only transformer: RMSNorm before each block, grouped-query attention, SwiGLU, no biases unless qkv_bias."""

    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    """Width of the SwiGLU's gate and of its up projection, each."""
    num_attention_heads: PositiveInt
    num_query_groups: PositiveInt | None = None
    """Key-value heads: heads = multi-head attention (the default), 1 = multi-query, between = grouped-query."""
    head_dim: PositiveInt | None = None
    """Width of a head; hidden_size / num_attention_heads by default."""
    vocab_size: PositiveInt
    """Rows of the embedding; at least the tokenizer's number of ids."""
    tie_embeddings: bool = True
    """The output projection is the embedding, transposed."""
    norm_epsilon: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 50_000.0
    """Base of the rotary frequencies (SmolLM3: 50,000 at 4k, 2,000,000 at 32k, 5,000,000 at 64k)."""
    llama3_rope_factor: float | None = Field(default=None, gt=1)
    """Divisor of the slowest rotary frequencies, by which Llama 3.1 (8) and 3.2 (32) reach 131,072 tokens from 8,192: those
    with waves of over 8,192 tokens are divided by it, those of under 2,048 kept, between them it is blended; null: none."""
    max_sequence_length: PositiveInt | None = None
    """Longest window, in tokens, that the model may be trained on; null: any, since rotary embedding has no table. from-hf
    writes what the Hugging Face configuration allows."""
    no_rope: PositiveInt | list[int] | None = None
    """Layers without rotary embedding: 4 means every 4th (SmolLM3's NoPE: 0-based layers 3, 7, ...), a list names
    0-based layers, null means rotary embedding everywhere."""
    qk_norm: bool = False
    """RMSNorm on every query and key head before the rotary embedding."""
    qkv_bias: bool = False
    """A bias on the query, key and value projections, as Qwen2 has; zero at first. Weight decay acts on it, as on norms, unless
    optim.no_weight_decay names it."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of the squared log-partition added to each target's loss (PaLM's z-loss; 1e-4 is usual)."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of all weight matrices; those that write to the residual stream (attention and MLP outputs) have
    it divided by sqrt(2 * num_layers)."""

    def problems(self) -> list[str]:
        found = []
        heads, groups = self.num_attention_heads, self.query_groups
        if heads % groups:
            found.append(f"num_attention_heads={heads} is not divisible by num_query_groups={groups}; choose a divisor")
        if self.head_dim is None and self.hidden_size % heads:
            found.append(f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={heads}; set head_dim")
        elif self.kv_channels % 2:
            found.append(f"head_dim={self.kv_channels} is odd; rotary embedding turns pairs of channels, so make it even")
        outside = [layer for layer in self.layers_without_rope if not 0 <= layer < self.num_layers]
        if outside:
            found.append(
                f"no_rope: layers {outside} do not exist; num_layers={self.num_layers} gives 0 to {self.num_layers - 1}"
            )
        return found

    @property
    def query_groups(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def kv_channels(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def layers_without_rope(self) -> list[int]:
        """0-based layers that use no position information."""
        if isinstance(self.no_rope, int):
            return list(range(self.no_rope - 1, self.num_layers, self.no_rope))
        return sorted(self.no_rope or [])

    # --- sizes -----------------------------------------------------------------------------------------------------

    @property
    def attention_parameters(self) -> int:
        """Of one layer: query, key, value and output projections, and the query and key norms and biases if there are any."""
        query, key_value = self.num_attention_heads * self.kv_channels, self.query_groups * self.kv_channels
        return self.hidden_size * (2 * query + 2 * key_value) + self.attention_vector_parameters

    @property
    def attention_vector_parameters(self) -> int:
        """Of one layer: the query and key norms and the biases, which are no part of a matrix."""
        norms = 2 * self.kv_channels if self.qk_norm else 0
        biases = (self.num_attention_heads + 2 * self.query_groups) * self.kv_channels if self.qkv_bias else 0
        return norms + biases

    @property
    def mlp_parameters(self) -> int:
        """Of one layer: gate, up and down projections."""
        return 3 * self.hidden_size * self.ffn_hidden_size

    @property
    def layer_parameters(self) -> int:
        """Of one layer, its two norms included."""
        return self.attention_parameters + self.mlp_parameters + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All trained parameters; a tied embedding counts once."""
        embeddings = self.embedding_parameters * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * self.layer_parameters + self.hidden_size

    # --- work --------------------------------------------------------------------------------------------------------

    @property
    def flops_per_token_6nd(self) -> int:
        """Forward and backward FLOPs per token by the rule 6N, N all parameters: what scaling laws and hour counts use."""
        return 6 * self.parameters

    def flops_per_token(self, sequence_length: int) -> int:
        """Forward and backward FLOPs per token with attention counted: six per weight of the matrix products, plus
        12 * layers * heads * head_dim * S for scores and values over the full S x S square, as nanotron and Megatron
        count (22.07 GFLOP for SmolLM3-3B at 4096). Norms, biases and the embedding look-up are left out; the causal half and
        document borders are not deducted, so a utilisation from this figure compares with published ones."""
        layer = self.attention_parameters - self.attention_vector_parameters + self.mlp_parameters
        matrices = self.num_layers * layer + self.embedding_parameters
        return 6 * matrices + 12 * self.num_layers * self.num_attention_heads * self.kv_channels * sequence_length

    def kv_cache_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Bytes that one token of context holds in the keys and values of all layers."""
        return 2 * self.num_layers * self.query_groups * self.kv_channels * bytes_per_element
