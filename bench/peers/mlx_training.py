"""The models of axon_peer.exs in Python MLX, on the same weights, and their training with Polaris' Adam."""

import time

import mlx.core as mx

from adam import adam
from server import Case


def dense(w, x, name, dtype):
    return x.astype(dtype) @ w[f"{name}.kernel"].astype(dtype) + w[f"{name}.bias"].astype(dtype)


def norm(w, x, name):
    return mx.fast.layer_norm(x.astype(mx.float32), w[f"{name}.gamma"], w[f"{name}.beta"], 1e-5)


def relu(x):
    return mx.maximum(x, 0)


def gelu(x):
    return x * (1 + mx.erf(x * 0.5**0.5)) * 0.5


def mlp(w, x, dtype, **_):
    for name in ("hidden_0", "hidden_1"):
        x = relu(dense(w, x, name, dtype))
    return dense(w, x, "head", dtype)


def convolutional(w, x, dtype, **_):
    for name in ("conv_0", "conv_1"):
        kernel, bias = (w[f"{name}.{part}"].astype(dtype) for part in ("kernel", "bias"))
        x = relu(mx.conv2d(x.astype(dtype), kernel.transpose(3, 0, 1, 2), padding=1) + bias)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = relu(dense(w, x.reshape(x.shape[0], -1), "hidden", dtype))
    return dense(w, x, "head", dtype)


def transformer(w, x, dtype, blocks, heads):
    x = w["tokens.kernel"].astype(dtype)[x] + w["positions.kernel"].astype(dtype)
    batch, length, size = x.shape
    split = lambda t: t.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)
    for i in range(blocks):
        name = f"block_{i}"
        q, k, v = (split(dense(w, x, f"{name}_{part}", dtype)) for part in ("query", "key", "value"))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=(size // heads) ** -0.5)
        out = dense(w, out.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}_output", dtype)
        x = norm(w, x.astype(dtype) + out, f"{name}_norm_0")
        h = gelu(dense(w, x, f"{name}_up", dtype))
        x = norm(w, x.astype(dtype) + dense(w, h, f"{name}_down", dtype), f"{name}_norm_1")
    return dense(w, x.astype(dtype).mean(1), "head", dtype)


MODELS = {f.__name__: f for f in (mlp, convolutional, transformer)}


def training(peak, dtypes, model, file, inputs, type, steps, out, blocks, heads, **_):
    """Steps of Adam on one batch; see axon_peer.exs."""
    forward, steps, dtype, sizes = MODELS[model], int(steps), dtypes[type], {"blocks": int(blocks), "heads": int(heads)}
    batch, initial = mx.load(inputs), mx.load(file)

    def loss_of(w, x, y):
        logits = forward(w, x, dtype, **sizes).astype(mx.float32)
        return -(y * (logits - mx.logsumexp(logits, -1, keepdims=True))).sum(-1).mean()

    @mx.compile
    def step(w, state, x, y):
        loss, gradients = mx.value_and_grad(loss_of)(w, x, y)
        return *adam(mx, w, gradients, state), loss

    def start():
        w = {name: array + 0 for name, array in initial.items()}
        zeros = lambda: {name: mx.zeros_like(array) for name, array in initial.items()}
        state = (zeros(), zeros(), mx.array(0.0))
        mx.eval(w, state, batch)
        return w, state

    def trained(w, state, count):
        losses = []
        for _ in range(count):
            w, state, loss = step(w, state, batch["x"], batch["y"])
            mx.eval(w, state, loss)
            losses.append(loss.item())
        return w, losses

    def run():
        state = start()
        begin = time.perf_counter()
        trained(*state, steps)
        return (time.perf_counter() - begin) * 1e6 / steps

    def sample():
        w, losses = trained(*start(), steps)
        mx.save_safetensors(out, w)
        return [losses[0], sum(losses) / steps]

    return Case(run, sample=sample, peak=lambda: peak(lambda: trained(*start(), 2)))
