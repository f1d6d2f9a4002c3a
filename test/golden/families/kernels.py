"""The fused kernels, by their formulas in float64, of inputs rounded to their type. MLX's own call is compared with as
well."""

import itertools

import mlx.core as mx
import numpy as np

from .common import *

TYPES = ("f32", "f16", "bf16")
POOL = 8192


def draw(shape, dtype, at=0, scale=1.0):
    """Numbers from one pool a type, so that the file holds each of them once."""
    size = int(np.prod(shape))
    if scale != 1.0:
        return arr(wide(noise((size,), dtype, key=at)) * scale, dtype, shape)
    pool = noise((POOL,), dtype)
    start = (at * 1237) % (POOL - size)
    return pool[start : start + size].reshape(shape)


def rms_norm(x, weight, eps):
    out = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    return out if weight is None else out * weight


def layer_norm(x, weight, bias, eps):
    centred = x - np.mean(x, -1, keepdims=True)
    out = centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


NORM_SHAPES = [(4,), (1, 8), (3, 64), (2, 3, 80), (2, 1, 2, 128), (0, 64), (2, 1), (1, 400)]


def add_norms(cases):
    for dtype in TYPES:
        for shape in NORM_SHAPES:
            x, weight, bias = draw(shape, dtype, 1), draw(shape[-1:], dtype, 2), draw(shape[-1:], dtype, 3)
            for eps in (1e-5, 0.1):
                if eps == 0.1 and shape != (3, 64):
                    continue
                for w in (None, weight):
                    label = f"{dtype} {list(shape)} {eps} weight {w is not None}"
                    cases.like_mlx(label, op("rms_norm", eps=eps), [x, w], lambda x, w: rms_norm(x, w, eps), lambda x, w: mx.fast.rms_norm(x, w, eps), "fused")
                    for b in (None, bias):
                        more = f"{label} bias {b is not None}"
                        cases.like_mlx(more, op("layer_norm", eps=eps), [x, w, b], lambda x, w, b: layer_norm(x, w, b, eps), lambda x, w, b: mx.fast.layer_norm(x, w, b, eps), "fused")
        # Squares that do not fit 16 bits, rows of equals and rows of zeros.
        far = np.concatenate([draw((2, 32), dtype, 4, 400.0), arr(np.full((1, 32), 7.0), dtype), arr(np.zeros((1, 32)), dtype)])
        cases.like_mlx(f"{dtype} far", op("rms_norm", eps=1e-5), [far, None], lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: mx.fast.rms_norm(x, w, 1e-5), "fused")
        cases.like_mlx(f"{dtype} far", op("layer_norm", eps=1e-5), [far, None, None], lambda x, w, b: layer_norm(x, w, b, 1e-5), lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5), "fused")
    for x_type, w_type in (("f16", "f32"), ("bf16", "f32"), ("f32", "bf16")):
        x, weight, bias = draw((3, 16), x_type), draw((16,), w_type, 2), draw((16,), w_type, 3)
        cases.like_mlx(f"{x_type} by {w_type}", op("rms_norm", eps=1e-5), [x, weight], lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: mx.fast.rms_norm(x, w, 1e-5), "fused")
        cases.like_mlx(f"{x_type} by {w_type}", op("layer_norm", eps=1e-5), [x, weight, bias], lambda x, w, b: layer_norm(x, w, b, 1e-5), lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5), "fused")


def rope(x, offset, freqs, dims, traditional, base, scale):
    """x is {batch, …, length, size}; of the last axis the first `dims` are turned."""
    half = dims // 2
    inverse = base ** (-np.arange(half) / half) if freqs is None else 1 / freqs
    length = x.shape[-2]
    batch = np.broadcast_to(np.asarray(offset, np.float64), (x.shape[0],))
    positions = (batch[:, None] + np.arange(length)) * scale
    angles = positions[..., None] * inverse
    angles = angles.reshape((x.shape[0],) + (1,) * (x.ndim - 3) + (length, half))
    cos, sin = np.cos(angles), np.sin(angles)
    out = x.copy()
    if traditional:
        first, second = slice(0, dims, 2), slice(1, dims, 2)
    else:
        first, second = slice(0, half), slice(half, dims)
    a, b = x[..., first], x[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


def add_rope(cases):
    def one(label, x, offset, freqs=None, dims=None, traditional=False, base=10000.0, scale=1.0, tolerance="fused"):
        dims = dims or x.shape[-1]
        base = base if freqs is None else None
        operation = op("rope", dims=dims, traditional=traditional, base=base, scale=scale)
        mlx = lambda x, o, f: mx.fast.rope(x, dims, traditional=traditional, base=base, scale=scale, offset=o, freqs=f)
        compute = lambda x, o, f: rope(x, o, f, dims, traditional, base, scale)
        cases.like_mlx(f"{name_of(x)} {list(x.shape)} {label}", operation, [x, offset, freqs], compute, mlx, tolerance)

    for dtype in TYPES:
        for shape in ((2, 5, 8), (2, 2, 4, 16), (1, 3, 1, 64)):
            x = draw(shape, dtype, 5)
            each = arr(np.arange(shape[0]) * 11 + 3, "s32")
            for traditional in (False, True):
                one(f"at 0 {traditional}", x, arr(0, "s32"), traditional=traditional)
                one(f"at 17 {traditional}", x, arr(17, "s32"), traditional=traditional)
                one(f"each its own {traditional}", x, each, traditional=traditional)
                one(f"half of the size {traditional}", x, arr(2, "s32"), dims=shape[-1] // 2, traditional=traditional)
                one(f"freqs {traditional}", x, each, freqs=arr(np.linspace(1, 40, shape[-1] // 2), "f32"), traditional=traditional)
            one("scaled", x, arr(9, "s32"), scale=0.25)
            one("base 500", x, arr(9, "s32"), base=500.0)
        one("freqs of a part", draw((2, 2, 3, 12), dtype, 6), arr(4, "s32"), freqs=arr([1, 3, 9], "f32"), dims=6)
        one("head 80", draw((1, 2, 3, 80), dtype, 7), arr(1, "s32"), dims=32)
        one("none", draw((0, 2, 3, 8), dtype), arr(1, "s32"))
        one("offset of one", draw((1, 2, 3, 8), dtype, 8), arr([5], "s32"))
    one("far", draw((2, 5, 8), "f32", 5), arr(3000, "s32"), tolerance=(2e-3, 1e-3))
    one("s64", draw((2, 5, 8), "f32", 5), arr(7, "s64"))


def attention(q, k, v, scale, mask=None, sinks=None, causal=False, least=None):
    heads, kv_heads = q.shape[1], k.shape[1]
    k, v = (np.repeat(a, heads // kv_heads, 1) for a in (k, v))
    scores = scale * (q @ np.swapaxes(k, -1, -2))
    if causal:
        length, kv_length = scores.shape[-2:]
        mask = np.arange(kv_length)[None, :] <= np.arange(kv_length - length, kv_length)[:, None]
    if mask is not None and mask.dtype == np.bool_:
        scores = np.where(mask, scores, least)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = np.broadcast_to(sinks.reshape(1, heads, 1, 1), scores.shape[:-1] + (1,))
        scores = np.concatenate([column, scores], -1)
    weights = np.exp(scores - np.max(scores, -1, keepdims=True))
    weights = weights / np.sum(weights, -1, keepdims=True)
    return (weights if sinks is None else weights[..., 1:]) @ v


def add_attention(cases):
    def one(label, dtype, q, k, v, mask=None, sinks=None, causal=False, scale=None):
        scale = float(np.float32(scale or q.shape[-1] ** -0.5))
        least = float(ml_dtypes.finfo(np_dtype(dtype)).min)
        mode = "causal" if causal else "none" if mask is None else "array"
        operation = op("scaled_dot_product_attention", scale=scale, mask=Atom(mode))
        mlx = lambda q, k, v, m, s: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal" if causal else m, sinks=s)
        compute = lambda q, k, v, m, s: attention(q, k, v, scale, m, s, causal, least)
        cases.like_mlx(f"{dtype} {label}", operation, [q, k, v, mask, sinks], compute, mlx, "fused")

    def triple(dtype, batch, heads, kv_heads, length, kv_length, size):
        return (
            draw((batch, heads, length, size), dtype, 9),
            draw((batch, kv_heads, kv_length, size), dtype, 10),
            draw((batch, kv_heads, kv_length, size), dtype, 11),
        )

    lengths = itertools.cycle([(1, 1), (1, 7), (2, 2), (2, 5)])
    for dtype in TYPES:
        for size in (32, 64, 80, 128):
            for kv_heads in (8, 2, 1):
                length, kv_length = next(lengths)
                q, k, v = triple(dtype, 1, 8, kv_heads, length, kv_length, size)
                for causal in (False, True):
                    one(f"heads 8/{kv_heads} of {size} lengths {length}/{kv_length} causal {causal}", dtype, q, k, v, causal=causal)
        q, k, v = triple(dtype, 2, 4, 2, 2, 4, 32)
        seen = noise((2, 4, 2, 4), "bool", key=3)
        seen[..., 0] = True
        none = seen.copy()
        none[0, 1, 1, :] = False
        none[1, :, 0, :] = False
        added = draw((2, 4), dtype, 12)
        cut = added.copy()
        cut[0, 1:], cut[1, 0] = -INF, -INF
        sinks = draw((4,), dtype, 13)
        one("boolean mask", dtype, q, k, v, seen)
        one("boolean mask of wholly masked rows", dtype, q, k, v, none)
        one("boolean mask for all heads", dtype, q, k, v, seen[:, :1])
        one("boolean mask of keys", dtype, q, k, v, seen[:, :1, :1])
        one("boolean mask of two axes", dtype, q, k, v, seen[0, 0])
        one("added mask", dtype, q, k, v, added)
        one("added mask with infinities", dtype, q, k, v, cut)
        one("added mask a head", dtype, q, k, v, draw((1, 4, 2, 4), dtype, 14))
        one("sinks", dtype, q, k, v, sinks=sinks)
        one("sinks, causal", dtype, q, k, v, sinks=sinks, causal=True)
        one("sinks, boolean mask", dtype, q, k, v, none, sinks=sinks)
        one("sinks, added mask", dtype, q, k, v, cut, sinks=sinks)
        one("scale 0.1", dtype, q, k, v, scale=0.1)
        one("values of another size", dtype, q, k, draw((2, 2, 4, 16), dtype, 11))
        q, k, v = triple(dtype, 1, 2, 2, 24, 24, 32)
        one("lengths 24/24", dtype, q, k, v)
        one("lengths 24/24 causal", dtype, q, k, v, causal=True)


def add_cross_entropy(cases):
    def compute(logits, targets):
        top = np.max(logits, -1, keepdims=True)
        total = np.log(np.sum(np.exp(logits - top), -1)) + top[..., 0]
        return total - np.take_along_axis(logits, targets.astype(int)[..., None], -1)[..., 0]

    for dtype in TYPES:
        for shape in ((5, 7), (2, 3, 11), (4, 1), (2, 200)):
            logits = draw(shape, dtype, 15)
            targets = arr(rng_for(shape).integers(0, shape[-1], shape[:-1]), "s32")
            cases.like_mlx(f"{dtype} {list(shape)}", op("cross_entropy"), [logits, targets], compute, mx.fast.cross_entropy, "fused")
        logits = arr([[1000.0, 990.0, -1000.0], [-1000.0, -990.0, -995.0]], dtype)
        cases.like_mlx(f"{dtype} large", op("cross_entropy"), [logits, arr([1, 0], "u32")], compute, mx.fast.cross_entropy, "fused")


def add(cases):
    # The pools come first, so that what is drawn from them is found there.
    for dtype in TYPES:
        cases._place(noise((POOL,), dtype))
    add_norms(cases)
    add_rope(cases)
    add_attention(cases)
    add_cross_entropy(cases)
