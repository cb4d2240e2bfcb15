"""The facts of a model that cost, memory and bounds need, without its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Widths and counts of a GLM decoder. All sizes are element counts unless a unit is named."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    tied_head: bool

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer's matrices (norms and biases are negligible and left out)."""
        qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        out = self.heads * self.head_dim * self.hidden
        return qkv + out + 3 * self.hidden * self.intermediate

    def kv_bytes_per_token(self, layers: int, bytes_per_value: int = 4) -> int:
        """Bytes of keys and values that one token occupies in ``layers`` layers."""
        return 2 * layers * self.kv_heads * self.head_dim * bytes_per_value
