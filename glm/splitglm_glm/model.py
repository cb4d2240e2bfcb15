"""GLM in one file of torch: any range of decoder layers, with or without embedding and head.

Read top to bottom: RMSNorm, rotary, attention, MLP, block, KV cache, model. Numerics follow `transformers` 5
(``modeling_glm.py``, ``modeling_glm4.py``), which is the reference of the parity tests: norms and rotary angles in
float32, everything else in the dtype of the weights.

Letters in shape comments:
    n  tokens of this call            H  hidden size           h  attention heads
    p  positions already in the cache I  intermediate size     g  key/value heads (h is a multiple of g)
    m  p + n                          V  vocabulary            d  head dimension, r of which rotate

    glm block                                 glm4 block (sandwich norms)
    x = x + attn(input_norm(x))               x = x + post_self_attn_norm(attn(input_norm(x)))
    x = x + mlp(post_attention_norm(x))       x = x + post_mlp_norm(mlp(post_attention_norm(x)))
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitglm_core.errors import BadTensor, InputError, InternalError, PromptTooLong
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint, LayerWeights
from splitglm_glm.config import GlmConfig
from splitglm_glm.layer_lengths import common_length
from splitglm_glm.linear import Int8Linear, Linear, MakeLinear, frozen

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [n, h, d], k [n, g, d], v [n, g, d], both rotated) -> [n, h, d]: stores keys and values, then attends.

It is an argument of a block, so that one definition serves a private cache and a batched, paged one alike.
"""


class RmsNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019); the mean is taken in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = frozen(weight)  # [H]
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021) of pairs (2i, 2i + 1) in the first r elements of each head."""

    inverse_frequencies: Tensor

    def __init__(self, config: GlmConfig, device: torch.device) -> None:
        super().__init__()
        r = config.rotary_dim
        exponents = torch.arange(0, r, 2, dtype=torch.float32) / r
        self.register_buffer("inverse_frequencies", (1.0 / config.rope_theta**exponents).to(device), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [n, 1, r/2] of integer ``positions`` [n]; angles are float32 whatever ``dtype`` is."""
        angles = positions[:, None].to(torch.float32) * self.inverse_frequencies
        return angles.cos()[:, None].to(dtype), angles.sin()[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [n, heads, d] with its first r elements rotated by ``cos`` and ``sin`` [n, 1, r/2]."""
    r = 2 * cos.shape[-1]
    even, odd = x[..., 0:r:2], x[..., 1:r:2]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((rotated, x[..., r:]), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with fused Q, K, V rows; where keys and values live is up to ``attend``."""

    def __init__(self, config: GlmConfig, weights: LayerWeights, linear: MakeLinear) -> None:
        super().__init__()
        shape = config.shape
        self.head_dim = shape.head_dim
        self.split = (shape.heads, shape.kv_heads, shape.kv_heads)
        self.qkv = linear(weights.qkv, weights.qkv_bias)  # [(h + 2g) d, H]
        self.o = linear(weights.o, None)  # [H, h d]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        n = x.shape[0]
        fused = self.qkv(x).view(n, sum(self.split), self.head_dim)  # [n, h + 2g, d]
        q, k, v = torch.split(fused, list(self.split), dim=1)
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)  # [n, h, d]
        return self.o(y.reshape(n, -1))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """SwiGLU (Shazeer 2020) with fused gate and up rows."""

    def __init__(self, weights: LayerWeights, linear: MakeLinear) -> None:
        super().__init__()
        self.gate_up = linear(weights.gate_up, None)  # [2I, H]
        self.down = linear(weights.down, None)  # [H, I]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(up * F.silu(gate))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One decoder layer, [n, H] to [n, H]."""

    def __init__(
        self, config: GlmConfig, weights: LayerWeights, place: Callable[[np.ndarray], Tensor], linear: MakeLinear
    ) -> None:
        super().__init__()

        def norm(weight: np.ndarray | None) -> nn.Module:
            return nn.Identity() if weight is None else RmsNorm(place(weight), config.rms_eps)

        self.input_norm = norm(weights.input_norm)
        self.attention = Attention(config, weights, linear)
        self.post_self_attn_norm = norm(weights.post_self_attn_norm)
        self.post_attention_norm = norm(weights.post_attention_norm)
        self.mlp = Mlp(weights, linear)
        self.post_mlp_norm = norm(weights.post_mlp_norm)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.post_self_attn_norm(self.attention(self.input_norm(x), cos, sin, attend))
        y: Tensor = x + self.post_mlp_norm(self.mlp(self.post_attention_norm(x)))
        return y


class TorchKvCache:
    """Keys and values of one request for ``layers``, up to ``capacity`` positions.

    Each layer counts its own positions, because a front and a tail that share a cache advance one after the other.
    Memory is for 64 positions times a power of two: it doubles (and is copied) when positions need it, and shrinks when
    a truncation leaves less than a quarter in use.
    """

    def __init__(
        self, config: GlmConfig, layers: LayerRange, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        limit = config.max_position_embeddings
        if not 1 <= capacity <= limit:
            raise PromptTooLong(f"{capacity} positions are outside [1, {limit}] of this model", "shorten the prompt")
        if layers.stop > config.shape.layers:
            raise InternalError(f"layers {layers} are outside the {config.shape.layers} layers of this model")
        self.layers = layers
        self.capacity = capacity
        nothing = torch.empty((config.shape.kv_heads, 0, config.shape.head_dim), dtype=dtype, device=device)
        self._keys = dict.fromkeys(layers, nothing)  # [g, committed, d]
        self._values = dict.fromkeys(layers, nothing)
        self._lengths = dict.fromkeys(layers, 0)
        self._closed = False

    @property
    def length(self) -> int:
        """Positions that every layer holds."""
        return min(self._lengths.values(), default=0)

    def length_of(self, layers: LayerRange) -> int:
        """Positions held by each of ``layers``.

        Raises:
            InternalError: a layer outside the cache, or layers that have run a different number of positions.
        """
        if self._closed:
            raise InternalError("this KV cache is closed")
        return common_length(self._lengths, layers)

    def truncate(self, length: int) -> None:
        """Forget positions from ``length`` on, in every layer.

        Raises:
            InternalError: negative, or more positions than any layer holds.
        """
        if not 0 <= length <= max(self._lengths.values(), default=0):
            raise InternalError(f"cannot truncate a KV cache of {self.length} positions to {length}")
        self._lengths = {layer: min(held, length) for layer, held in self._lengths.items()}
        for layer, held in self._lengths.items():
            if 4 * held < self._keys[layer].shape[1] > self.committed_for(held):
                self._resize(layer, self.committed_for(held))

    @property
    def committed(self) -> int:
        """Positions that every layer has memory for at this moment, at most."""
        return max((keys.shape[1] for keys in self._keys.values()), default=0)

    def committed_for(self, positions: int) -> int:
        """What a layer needs memory for when it holds ``positions`` positions."""
        return min(self.capacity, 1 << (max(positions, 64) - 1).bit_length()) if positions else 0

    def _resize(self, layer: int, positions: int) -> None:
        held = self._lengths[layer]
        for buffers in (self._keys, self._values):
            old = buffers[layer]
            buffers[layer] = old.new_empty((old.shape[0], positions, old.shape[2]))
            buffers[layer][:, :held] = old[:, :held]

    def bytes_reserved(self) -> int:
        """Bytes of the buffers, written or not."""
        return sum(tensor.nbytes for tensor in (*self._keys.values(), *self._values.values()))

    def close(self) -> None:
        """Free the buffers; may be called twice."""
        self._closed = True
        self._keys.clear()
        self._values.clear()
        self._lengths = dict.fromkeys(self.layers, 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write ``k`` and ``v`` [n, g, d] after what ``layer`` holds, then attend causally; returns [n, h, d].

        Does not advance the layer's length: ``commit`` does, when the whole call has succeeded.
        """
        n, p = q.shape[0], self._lengths[layer]
        if p + n > self._keys[layer].shape[1]:
            self._resize(layer, self.committed_for(p + n))
        keys, values = self._keys[layer][:, : p + n], self._values[layer][:, : p + n]  # [g, m, d]
        keys[:, p:] = k.transpose(0, 1)
        values[:, p:] = v.transpose(0, 1)
        mask = None
        if n > 1 and p > 0:  # row i sees columns up to p + i; is_causal would align the triangle to the upper left
            columns = torch.arange(p + n, device=q.device)
            mask = columns <= columns[p:, None]  # [n, m]
        y = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],  # [1, h, n, d]
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=n > 1 and p == 0,
            enable_gqa=True,
        )
        return y[0].transpose(0, 1)

    def commit(self, layers: LayerRange, n: int) -> None:
        """Count ``n`` more positions in each of ``layers``."""
        for layer in layers:
            self._lengths[layer] += n


class GlmModel(nn.Module):
    """Decoder layers of one GLM, and embedding and head where they are loaded; make one with ``GlmModel.load``."""

    def __init__(self, config: GlmConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.layers = LayerRange(0, 0)
        self.rotary = Rotary(config, device)
        self.blocks = nn.ModuleDict()
        self.embedding: nn.Parameter | None = None  # [V, H]
        self.final_norm: RmsNorm | None = None
        self.head: nn.Module | None = None  # [V, H], the embedding itself when tied and not of 8 bits

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        layers: LayerRange,
        *,
        embedding: bool,
        head: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        int8: bool = False,
    ) -> GlmModel:
        """Read ``layers`` of ``checkpoint`` one at a time; peak host memory is the result plus one layer in float32.

        Args:
            checkpoint: where the weights lie.
            layers: the decoder layers to load.
            embedding: load the embedding too.
            head: load the final norm and the head too.
            dtype: of the activations, and of the weights that ``int8`` leaves alone.
            device: where everything is put.
            int8: hold the matrices of layers and head as 8-bit integers; embedding, norms and biases stay in ``dtype``.

        Raises:
            InternalError: layers that the checkpoint does not have.
            ModelInvalid: damaged or non-finite weights.
        """
        config = checkpoint.config
        if layers.stop > config.shape.layers:
            raise InternalError(f"layers {layers} are outside the {config.shape.layers} layers of this model")
        model = cls(config, dtype=dtype, device=torch.device(device))

        def place(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device=model.device, dtype=dtype)

        def linear(weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
            placed = None if bias is None else place(bias)
            return Int8Linear.quantise(weight, placed, model.device) if int8 else Linear(place(weight), placed)

        model.layers = layers
        for layer in layers:
            model.blocks[str(layer)] = Block(config, checkpoint.layer(layer), place, linear)
        if embedding:
            model.embedding = frozen(place(checkpoint.embedding()))
        if head:
            shared = model.embedding if config.tie_word_embeddings and not int8 else None
            model.head = Linear(shared) if shared is not None else linear(checkpoint.head(), None)
            model.final_norm = RmsNorm(place(checkpoint.final_norm()), config.rms_eps)
        return model

    def new_cache(self, layers: LayerRange, capacity: int) -> TorchKvCache:
        """An empty cache for ``layers`` and up to ``capacity`` positions.

        Raises:
            PromptTooLong: more positions than the model has.
        """
        return TorchKvCache(self.config, layers, capacity, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states [n, H] of token ``ids`` [n] (any integer dtype).

        Raises:
            InputError: an id is outside the vocabulary.
            InternalError: the embedding is not loaded, or ``ids`` is not one row of integers.
        """
        if self.embedding is None:
            raise InternalError("the embedding is not loaded", "load the model with embedding=True")
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex():
            raise InternalError(f"token ids must be one row of integers, not {ids.dtype} {list(ids.shape)}")
        # On an accelerator an id out of range would abort the whole process.
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.config.shape.vocab):
            raise InputError(f"a token id is outside the vocabulary of {self.config.shape.vocab}")
        return F.embedding(ids.to(device=self.device, dtype=torch.int64), self.embedding)

    @torch.no_grad()
    def forward(self, hidden: Tensor, cache: TorchKvCache, layers: LayerRange) -> Tensor:
        """Run ``layers`` on the next n positions of ``cache`` and append to it.

        Args:
            hidden: residual stream [n, H] at the entry of ``layers``; positions follow those the layers have run.
            cache: covers ``layers``; a failed call leaves its lengths as they were.

        Returns:
            The residual stream [n, H] at the exit, in the model's dtype.

        Raises:
            BadTensor: ``hidden`` is not [n, H].
            InternalError: layers that are not loaded or not in the cache.
            PromptTooLong: the cache is full.
        """
        if not self.layers.covers(layers):
            raise InternalError(f"layers {layers} are not loaded; loaded are {self.layers}")
        self._check_hidden(hidden)
        n, p = hidden.shape[0], cache.length_of(layers)
        if p + n > cache.capacity:
            raise PromptTooLong(f"{p} + {n} positions do not fit a cache of {cache.capacity}", "shorten the prompt")
        if n == 0:
            return hidden.to(device=self.device, dtype=self.dtype)
        positions = torch.arange(p, p + n, device=self.device)
        x = self.run(hidden, positions, layers, lambda layer: _attend_in(cache, layer))
        cache.commit(layers, n)
        return x

    @torch.no_grad()
    def run(self, hidden: Tensor, positions: Tensor, layers: LayerRange, attend: Callable[[int], Attend]) -> Tensor:
        """Run ``layers`` on rows of one request or of many.

        Args:
            hidden: residual stream [n, H] at the entry of ``layers``.
            positions: of every row in its request, integers [n] on the model's device.
            layers: half-open, loaded.
            attend: attention of one layer, by the layer's number.

        Raises:
            BadTensor: ``hidden`` is not [n, H].
            InternalError: layers that are not loaded.
        """
        if not self.layers.covers(layers):
            raise InternalError(f"layers {layers} are not loaded; loaded are {self.layers}")
        self._check_hidden(hidden)
        x = hidden.to(device=self.device, dtype=self.dtype)
        cos, sin = self.rotary(positions, self.dtype)
        for layer in layers:
            x = self.blocks[str(layer)](x, cos, sin, attend(layer))
        return x

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: float32 logits [n, V] of hidden states [n, H] after the last layer.

        Raises:
            BadTensor: ``hidden`` is not [n, H].
            InternalError: the head is not loaded.
        """
        if self.head is None or self.final_norm is None:
            raise InternalError("the head is not loaded", "load the model with head=True")
        self._check_hidden(hidden)
        x = hidden.to(device=self.device, dtype=self.dtype)
        return self.head(self.final_norm(x)).to(torch.float32)  # type: ignore[no-any-return]

    def resident_weight_bytes(self) -> int:
        """Bytes of all loaded weights; a tied head counts once."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def _check_hidden(self, hidden: Tensor) -> None:
        width = self.config.shape.hidden
        if hidden.ndim != 2 or hidden.shape[1] != width or not hidden.is_floating_point():
            raise BadTensor(f"hidden states must be floats [n, {width}], not {hidden.dtype} {list(hidden.shape)}")


def _attend_in(cache: TorchKvCache, layer: int) -> Attend:
    return lambda q, k, v: cache.attend(layer, q, k, v)
