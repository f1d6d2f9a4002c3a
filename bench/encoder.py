"""The model of bench/encoder.exs in bare MLX."""

import mlx.core as mx

import bare_mlx
from bare_mlx import blocks, heads
from bare_mlx import weights as w


def dense(x, i, weight, bias):
    return x @ w[f"{weight}{i}"] + w[f"{bias}{i}"]


def gelu(x):
    return x * (1 + mx.erf(x / 2**0.5)) * 0.5


def attention(x, i):
    batch, length, size = x.shape
    dims = size // heads
    split = lambda t: t.reshape(batch, length, heads, dims).transpose(0, 2, 1, 3)
    q, k, v = (split(dense(x, i, name, f"{name}b")) for name in "qkv")
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=dims**-0.5)
    return dense(out.transpose(0, 2, 1, 3).reshape(batch, length, size), i, "o", "ob")


def model(x):
    for i in range(blocks):
        x = x + attention(x, i)
        x = mx.fast.layer_norm(x, w[f"norm_scale{i}"] + 1, w[f"norm_bias{i}"], 1e-12)
        x = x + dense(gelu(dense(x, i, "u", "ub")), i, "d", "db")
        x = mx.fast.layer_norm(x, w[f"out_scale{i}"] + 1, w[f"out_bias{i}"], 1e-12)
    return x


bare_mlx.serve(model, "y", w["x"])
