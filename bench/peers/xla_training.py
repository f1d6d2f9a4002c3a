"""The models of axon_peer.exs in JAX, on the same weights, and their training with Polaris' Adam."""

import time

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file, save_file

from adam import adam
from server import Case


def dense(w, x, name, dtype):
    return x.astype(dtype) @ w[f"{name}.kernel"].astype(dtype) + w[f"{name}.bias"].astype(dtype)


def norm(w, x, name):
    x = x.astype(jnp.float32)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return w[f"{name}.gamma"] * jax.lax.rsqrt(variance + 1e-5) * (x - mean) + w[f"{name}.beta"]


def mlp(w, x, dtype, **_):
    for name in ("hidden_0", "hidden_1"):
        x = jax.nn.relu(dense(w, x, name, dtype))
    return dense(w, x, "head", dtype)


def convolutional(w, x, dtype, **_):
    for name in ("conv_0", "conv_1"):
        kernel, bias = (w[f"{name}.{part}"].astype(dtype) for part in ("kernel", "bias"))
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x.astype(dtype), kernel, (1, 1), "SAME", dimension_numbers=layout)
        x = jax.nn.relu(x + bias)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(dense(w, x.reshape(x.shape[0], -1), "hidden", dtype))
    return dense(w, x, "head", dtype)


def transformer(w, x, dtype, blocks, heads):
    x = w["tokens.kernel"].astype(dtype)[x] + w["positions.kernel"].astype(dtype)
    batch, length, size = x.shape
    split = lambda t: t.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)
    for i in range(blocks):
        name = f"block_{i}"
        q, k, v = (split(dense(w, x, f"{name}_{part}", dtype)) for part in ("query", "key", "value"))
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * (size // heads) ** -0.5
        out = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)
        out = dense(w, out.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}_output", dtype)
        x = norm(w, x.astype(dtype) + out, f"{name}_norm_0")
        h = jax.nn.gelu(dense(w, x, f"{name}_up", dtype), approximate=False)
        x = norm(w, x.astype(dtype) + dense(w, h, f"{name}_down", dtype), f"{name}_norm_1")
    return dense(w, x.astype(dtype).mean(1), "head", dtype)


MODELS = {f.__name__: f for f in (mlp, convolutional, transformer)}


def training(model, file, inputs, type, steps, out, blocks, heads, **_):
    """Steps of Adam on one batch; see axon_peer.exs."""
    forward, steps, sizes = MODELS[model], int(steps), {"blocks": int(blocks), "heads": int(heads)}
    dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}[type]
    batch = {name: jnp.asarray(array) for name, array in load_file(inputs).items()}
    weights = {name: jnp.asarray(array) for name, array in load_file(file).items()}

    def loss(w, x, y):
        logits = forward(w, x, dtype, **sizes).astype(jnp.float32)
        return -(y * jax.nn.log_softmax(logits)).sum(-1).mean()

    def step(w, state, mean, x, y):
        value, gradients = jax.value_and_grad(loss)(w, x, y)
        count = state[2]
        w, state = adam(jnp, w, gradients, state)
        return w, state, (mean * count + value) / (count + 1)

    step = jax.jit(step, donate_argnums=(0, 1, 2))

    def initial():
        zeros = lambda: jax.tree.map(jnp.zeros_like, weights)
        state = (zeros(), zeros(), jnp.int32(0))
        return jax.block_until_ready((jax.tree.map(jnp.copy, weights), state, jnp.float32(0)))

    def trained(state, count):
        for _ in range(count):
            state = jax.block_until_ready(step(*state, batch["x"], batch["y"]))
        return state

    def run():
        state = initial()
        start = time.perf_counter()
        trained(state, steps)
        return (time.perf_counter() - start) * 1e6 / steps

    def sample():
        save_file({name: jax.device_get(array) for name, array in trained(initial(), steps)[0].items()}, out)
        return [float(trained(initial(), count)[2]) for count in (1, steps)]

    return Case(run, sample=sample)
