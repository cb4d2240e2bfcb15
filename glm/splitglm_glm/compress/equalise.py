"""Moving outliers from activations into weights before quantisation, at no cost when running.

A channel may be divided by ``s`` where it is produced and multiplied by ``s`` in the columns that consume it: the
product is the same, but both factors can be made equally hard to quantise. This is SmoothQuant (arXiv:2211.10438) with
its exponent 0.5, applied where the producer is a norm's weight or a row of the up projection.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from splitglm_glm.checkpoint import LayerWeights
from splitglm_glm.compress.quantise import Float32

_MOST = 64.0  # bound on a factor: a dead channel must not blow up its partner
_TINY = 1e-8


def channel_factors(activation_rms: Float32, weight_peak: Float32) -> Float32:
    """``s = sqrt(activation / weight)`` per channel, scaled to geometric mean 1 and bounded; float32 ``[channels]``."""
    ratio = np.maximum(activation_rms, _TINY) / np.maximum(weight_peak, _TINY)
    logarithm = 0.5 * np.log(ratio.astype(np.float64))
    bound = np.log(_MOST)
    return np.exp(np.clip(logarithm - np.median(logarithm), -bound, bound)).astype(np.float32)


def column_peaks(matrix: Float32) -> Float32:
    """Largest magnitude in each column of ``[n, k]``, without a temporary of the matrix's size."""
    peaks: Float32 = np.maximum(matrix.max(0), -matrix.min(0))
    return peaks


def equalise_layer(weights: LayerWeights, attention_in: Float32, mlp_in: Float32, activated: Float32) -> LayerWeights:
    """The same layer with equalised channels. The matrices of ``weights`` are changed in place.

    Args:
        weights: a layer that the caller owns.
        attention_in: RMS of the channels entering QKV, ``[hidden]``.
        mlp_in: RMS of the channels entering gate and up, ``[hidden]``.
        activated: RMS of the channels entering the down projection, ``[intermediate]``.
    """
    into_qkv = channel_factors(attention_in, column_peaks(weights.qkv))
    into_mlp = channel_factors(mlp_in, column_peaks(weights.gate_up))
    into_down = channel_factors(activated, column_peaks(weights.down))
    np.multiply(weights.qkv, into_qkv, out=weights.qkv)
    np.multiply(weights.gate_up, into_mlp, out=weights.gate_up)
    up = weights.gate_up[weights.gate_up.shape[0] // 2 :]
    np.divide(up, into_down[:, None], out=up)
    np.multiply(weights.down, into_down, out=weights.down)
    return dataclasses.replace(
        weights,
        input_norm=weights.input_norm / into_qkv,
        post_attention_norm=weights.post_attention_norm / into_mlp,
    )
