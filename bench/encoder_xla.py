"""The XLA side of bench/encoder: the model of bench/encoder.exs in jax.jit."""

import jax
import jax.numpy as jnp

import xla
from xla import blocks, heads, weights

hidden = weights.pop("x")


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-12) * scale + bias


def model(x, w):
    def dense(x, i, weight, bias):
        return x @ w[f"{weight}{i}"] + w[f"{bias}{i}"]

    def attention(x, i):
        batch, length, size = x.shape
        dims = size // heads
        split = lambda t: t.reshape(batch, length, heads, dims).transpose(0, 2, 1, 3)
        q, k, v = (split(dense(x, i, name, f"{name}b")) for name in "qkv")
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * dims**-0.5
        out = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)
        return dense(out.transpose(0, 2, 1, 3).reshape(batch, length, size), i, "o", "ob")

    for i in range(blocks):
        x = layer_norm(x + attention(x, i), w[f"norm_scale{i}"] + 1, w[f"norm_bias{i}"])
        h = jax.nn.gelu(dense(x, i, "u", "ub"), approximate=False)
        x = layer_norm(x + dense(h, i, "d", "db"), w[f"out_scale{i}"] + 1, w[f"out_bias{i}"])
    return x


xla.serve(model, "y", hidden, weights)
