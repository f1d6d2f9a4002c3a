"""XLA's side of the suite, by way of jax.jit, on the CPU: the models of mlx_models.py on the same checkpoints."""

import os
import platform

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import operations
import server
import small
from server import Case, evenly
from xla_training import training

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def load(file, type):
    cast = lambda a: jnp.asarray(a, DTYPES[type] if a.dtype.kind == "f" else jnp.int32)
    return {name: cast(array) for name, array in load_file(file).items()}


def sample(y):
    y = np.asarray(y, np.float32).reshape(-1)
    return y[evenly(y.size)].tolist()


def case(function):
    return Case(lambda: function().block_until_ready(), sample=lambda: sample(function()))


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * weight


def rope(x, offset):
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / half)
    angles = (offset + jnp.arange(x.shape[-2]))[:, None] * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def attention(q, k, v, seen):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)


def decoder(w, x, blocks, heads, attend):
    for i in range(blocks):
        of = lambda name: w[f"model.layers.{i}.{name}.weight"]
        batch, length, size = x.shape
        split = lambda t: t.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)
        h = rms_norm(x, of("input_layernorm"))
        out = attend(i, *(split(h @ of(f"self_attn.{name}_proj").T) for name in "qkv"))
        x = x + out.transpose(0, 2, 1, 3).reshape(batch, length, -1) @ of("self_attn.o_proj").T
        h = rms_norm(x, of("post_attention_layernorm"))
        x = x + (jax.nn.silu(h @ of("mlp.gate_proj").T) * (h @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
    return rms_norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def prefill(file, inputs, type, blocks, heads):
    w, tokens = load(file, type), jnp.asarray(load_file(inputs)["input_ids"])

    @jax.jit
    def model(tokens, w):
        length = tokens.shape[1]
        seen = jnp.tril(jnp.ones((length, length), bool))
        attend = lambda i, q, k, v: attention(rope(q, 0), rope(k, 0), v, seen)
        return decoder(w, w["model.embed_tokens.weight"][tokens], int(blocks), int(heads), attend)

    return case(lambda: model(tokens, w))


def decode(file, inputs, type, blocks, heads, length, offset):
    w, token = load(file, type), jnp.asarray(load_file(inputs)["input_ids"])
    blocks, heads, length, start = map(int, (blocks, heads, length, offset))
    table = w["model.embed_tokens.weight"]
    shape = (blocks, 2, token.shape[0], heads, length, table.shape[1] // heads)
    state = {}

    def step(token, cache, offset, w):
        new = []

        def attend(i, q, k, v):
            parts = [
                jax.lax.dynamic_update_slice(old, part, (0, 0, offset, 0)) for old, part in zip(cache[i], (rope(k, offset), v))
            ]
            new.append(parts)
            return attention(rope(q, offset), *parts, jnp.arange(length) <= offset)

        y = decoder(w, w["model.embed_tokens.weight"][token], blocks, heads, attend)
        return y, new

    step = jax.jit(step, donate_argnums=1)

    def reset():
        state["cache"] = [[jnp.zeros(shape[2:], table.dtype) for _ in range(2)] for _ in range(blocks)]
        state["offset"] = start

    def run():
        if not state or state["offset"] == length:
            reset()
        y, state["cache"] = step(token, state["cache"], state["offset"], w)
        state["offset"] += 1
        return jax.block_until_ready((y, state["cache"]))[0]

    def first():
        reset()
        return sample(run())

    return Case(run, sample=first)


def encoder(file, inputs, type, blocks, heads):
    w, batch = load(file, type), load_file(inputs)
    tokens, mask = jnp.asarray(batch["input_ids"]), jnp.asarray(batch["attention_mask"])

    def norm(w, x, name):
        x = x - x.mean(-1, keepdims=True)
        variance = jnp.square(x).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    @jax.jit
    def model(tokens, mask, w):
        dense = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        count, length = tokens.shape
        table = lambda name: w[f"embeddings.{name}_embeddings.weight"]
        x = table("word")[tokens] + table("position")[:length] + table("token_type")[0]
        x = norm(w, x, "embeddings.LayerNorm")
        seen = (mask != 0)[:, None, None, :]
        split = lambda t: t.reshape(count, length, int(heads), -1).transpose(0, 2, 1, 3)
        for i in range(int(blocks)):
            name = f"encoder.layer.{i}"
            q, k, v = (split(dense(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
            out = attention(q, k, v, seen).transpose(0, 2, 1, 3).reshape(x.shape)
            x = norm(w, x + dense(out, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
            h = jax.nn.gelu(dense(x, f"{name}.intermediate.dense"), approximate=False)
            x = norm(w, x + dense(h, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        weights = mask[:, :, None].astype(x.dtype)
        mean = (x * weights).sum(1) / weights.sum(1)
        return mean / jnp.sqrt(jnp.square(mean).sum(-1, keepdims=True))

    return case(lambda: model(tokens, mask, w))


def operation(file, name, inputs, links):
    function, links = OPERATIONS.get(name), int(links)
    if not function:
        return None
    arrays = load_file(file)
    arguments = [jnp.asarray(arrays[input]) for input in inputs.split(",")]
    compiled = jax.jit(function)

    def run():
        for _ in range(links):
            jax.block_until_ready(compiled(*arguments))

    return Case(run, links, lambda: sample(jnp.real(jax.tree.leaves(compiled(*arguments))[0])))


def small_case(function, arguments, links):
    """A function of small arrays, jitted, and its value read. Integers have 64 bits, as here and in NumPy."""
    compiled, links = jax.jit(function), int(links)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(argument) for argument in arguments]

    def run():
        with jax.enable_x64(True):
            for _ in range(links):
                np.asarray(compiled(*arguments))

    def first():
        with jax.enable_x64(True):
            return sample(compiled(*arguments))

    return Case(run, links, first)


def small_operation(file, name, links):
    function = small.operations(jnp, jax).get(name)
    return function and small_case(function, small.inputs(file), links)


def counted(file, count, steps, links):
    (x,), steps = small.inputs(file), int(steps)
    step = small.steps(jnp, jax)[int(count), x.dtype.kind]
    x = x * 0 if count == "0" else x
    return small_case(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: step(x), x), [x], links)


def conditional(file, name, links):
    start, condition, step = small.conditional(jnp)[name]

    def function(x):
        state = (start(x), jnp.int32(0))
        return jax.lax.while_loop(lambda s: condition(s[0]), lambda s: (step(s[0]), s[1] + 1), state)[1]

    return small_case(function, small.inputs(file), links)


OPERATIONS = operations.table(jnp, jax)
kinds = {f.__name__: f for f in (prefill, decode, encoder, operation, small_operation, counted, conditional, training)}
server.serve(kinds, {"Python": platform.python_version(), "JAX": jax.__version__})
