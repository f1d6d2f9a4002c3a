"""The model of bench/decoder.exs in bare MLX."""

import mlx.core as mx

import bare_mlx
from bare_mlx import blocks, heads
from bare_mlx import weights as w


def attention(x, i):
    batch, length, size = x.shape
    split = lambda t: t.reshape(batch, length, heads, size // heads).transpose(0, 2, 1, 3)
    q, k, v = (split(x @ w[f"{name}{i}"]) for name in "qkv")
    dims = size // heads
    q, k = (mx.fast.rope(t, dims, traditional=False, base=10000.0, scale=1.0, offset=0) for t in (q, k))
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=dims**-0.5, mask="causal")
    return out.transpose(0, 2, 1, 3).reshape(batch, length, size) @ w[f"o{i}"]


def model(tokens):
    x = w["embedding"][tokens]
    for i in range(blocks):
        x = x + attention(mx.fast.rms_norm(x, w[f"attention_norm{i}"], 1e-5), i)
        h = mx.fast.rms_norm(x, w[f"ffn_norm{i}"], 1e-5)
        gate = h @ w[f"gate{i}"]
        x = x + (gate * mx.sigmoid(gate) * (h @ w[f"up{i}"])) @ w[f"down{i}"]
    return mx.fast.rms_norm(x, w["norm"], 1e-5) @ w["head"]


bare_mlx.serve(model, "logits", w["tokens"])
