"""Python MLX's side of the suite: `python3 mlx_peer.py cpu|gpu`. The libmlx is the one that the NIF has
(LD_LIBRARY_PATH)."""

import gc
import platform
import sys
import time
from functools import partial

import mlx.core as mx

import mlx_training
import server
from mlx_models import Decoder, Encoder
from server import Case, evenly

mx.set_default_device(getattr(mx, sys.argv[1]))
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}


def sample(y):
    y = y.reshape(-1)
    return y[mx.array(evenly(y.size))].astype(mx.float32).tolist()


def uniform(shape, dtype, seed):
    x = mx.random.uniform(-1.7, 1.7, shape, key=mx.random.key(seed)).astype(dtype)
    mx.eval(x)
    return x


# ---- kernels ----


def kernel(name, dtype, rows, heads, links):
    """A chain of calls of one fused kernel, each on the result of the one before. `rows` is batch x tokens x size of
    what is normalised, `heads` batch x heads x queries x keys x size."""
    dtype, links = DTYPES[dtype], int(links)
    rows, heads = ([int(n) for n in numbers.split("x")] for numbers in (rows, heads))
    size = rows[-1]
    batch, count, queries, keys, dims = heads
    if name in ("rms_norm", "layer_norm"):
        x, weight, bias = uniform(rows, dtype, 1), uniform([size], dtype, 2), uniform([size], dtype, 3)
        if name == "rms_norm":
            call = lambda x: mx.fast.rms_norm(x, weight, 1e-6)
        else:
            call = lambda x: mx.fast.layer_norm(x, weight, bias, 1e-5)
    else:
        x = uniform([batch, count, queries, dims], dtype, 4)
        if name == "rope":
            call = lambda x: mx.fast.rope(x, dims, traditional=False, base=10000.0, scale=1.0, offset=0)
        else:
            k, v = (uniform([batch, count, keys, dims], dtype, seed) for seed in (5, 6))
            mask = "causal" if name == "causal_attention" else (mx.arange(keys) < keys - keys // 4).reshape(1, 1, 1, keys)
            call = lambda q: mx.fast.scaled_dot_product_attention(q, k, v, scale=dims**-0.5, mask=mask)

    def run():
        y = x
        for _ in range(links):
            y = call(y)
        mx.eval(y)

    return Case(run, links, lambda: sample(call(x)))


def product(size, dtype):
    a = mx.random.normal((int(size), int(size)), key=mx.random.key(1)).astype(DTYPES[dtype])
    mx.eval(a)
    return Case(lambda: mx.eval(a @ a))


# ---- dispatch ----


def additions(x, one, count):
    for _ in range(count):
        x = x + one
    return x


def building(count):
    """Microseconds for building one node; the computing is done after the clock has stopped."""
    one, count = mx.array(1.0), int(count)

    def run():
        start = time.perf_counter()
        last = additions(one, one, count)
        microseconds = (time.perf_counter() - start) * 1e6
        mx.eval(last)
        return microseconds

    return Case(run, count)


def chain(count, compiled, links):
    """A function of so many additions, called, computed and waited for."""
    one, links = mx.array(1.0), int(links)
    function = partial(additions, count=int(count))
    if compiled == "true":
        function = mx.compile(function)

    def run():
        for _ in range(links):
            mx.eval(function(one, one))

    return Case(run, links)


def reading(links):
    one, links = mx.array(1.0), int(links)
    mx.eval(one)

    def run():
        for _ in range(links):
            one.item()

    return Case(run, links)


# ---- models ----


def load(file, dtype):
    weights = mx.load(file)
    weights = {name: w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w for name, w in weights.items()}
    mx.eval(list(weights.values()))
    return weights


def encoder(file, inputs, type, blocks, heads):
    model = Encoder(load(file, DTYPES[type]), int(blocks), int(heads))
    batch = mx.load(inputs)

    def run():
        y = model(batch["input_ids"], batch["attention_mask"])
        mx.eval(y)
        return y

    return Case(run, sample=lambda: sample(run()))


def decoder(file, type, blocks, heads):
    return Decoder(load(file, DTYPES[type]), int(blocks), int(heads))


def prefill(file, inputs, type, blocks, heads):
    model, tokens = decoder(file, type, blocks, heads), mx.load(inputs)["input_ids"]

    def run():
        y = model(tokens)
        mx.eval(y)
        return y

    return Case(run, sample=lambda: sample(run()))


def decode(file, inputs, type, blocks, heads, length, offset):
    """A step with a cache of `length` positions, of which `offset` are filled at first; at the end it starts from there
    again."""
    model, token = decoder(file, type, blocks, heads), mx.load(inputs)["input_ids"]
    start, length = int(offset), int(length)
    state = {}

    def reset():
        state["cache"], state["offset"] = model.cache(token.shape[0], length), start

    def run():
        if not state or state["offset"] == length:
            reset()
        y = model.step(token, state["cache"], state["offset"])
        mx.eval(y, state["cache"])
        state["offset"] += 1
        return y

    def first():
        reset()
        return sample(run())

    return Case(run, sample=first)


def peak(run):
    gc.collect()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    run()
    return max(mx.get_peak_memory() - held, 0)


def training(**options):
    return mlx_training.training(peak, DTYPES, **options)


def tidy():
    gc.collect()
    mx.clear_cache()


kinds = {f.__name__: f for f in (kernel, product, building, chain, reading, encoder, prefill, decode, training)}
versions = {"Python": platform.python_version(), "MLX": mx.__version__}
server.serve(kinds, versions, peak, tidy)
