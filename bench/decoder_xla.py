"""The XLA side of bench/decoder: the model of bench/decoder.exs in jax.jit."""

import jax
import jax.numpy as jnp

import xla
from xla import blocks, heads, weights

tokens = weights.pop("tokens")


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * weight


def rope(x):
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[-2])[:, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def model(tokens, w):
    def attention(x, i):
        batch, length, size = x.shape
        dims = size // heads
        split = lambda t: t.reshape(batch, length, heads, dims).transpose(0, 2, 1, 3)
        q, k, v = (split(x @ w[f"{name}{i}"]) for name in "qkv")
        scores = jnp.einsum("bhqd,bhkd->bhqk", rope(q), rope(k)) * dims**-0.5
        seen = jnp.tril(jnp.ones((length, length), bool))
        out = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)
        return out.transpose(0, 2, 1, 3).reshape(batch, length, size) @ w[f"o{i}"]

    x = w["embedding"][tokens]
    for i in range(blocks):
        x = x + attention(rms_norm(x, w[f"attention_norm{i}"]), i)
        h = rms_norm(x, w[f"ffn_norm{i}"])
        x = x + (jax.nn.silu(h @ w[f"gate{i}"]) * (h @ w[f"up{i}"])) @ w[f"down{i}"]
    return rms_norm(x, w["norm"]) @ w["head"]


xla.serve(model, "logits", tokens, weights)
