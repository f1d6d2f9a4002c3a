"""Quantized weights, in the formats that MLX 0.32.2 has for the CPU. The reference is MLX itself, and the formula of
its documentation."""

import mlx.core as mx
import numpy as np

from .common import *

AFFINE = [(group, bits) for group in (32, 64, 128) for bits in (2, 3, 4, 5, 6, 8)]
FORMATS = [("affine", *pair) for pair in AFFINE] + [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)]


def quantized(w, mode, group, bits, scale=None):
    return run_mx(lambda w, *s: mx.quantize(w, group, bits, mode, global_scale=s[0] if s else None), [w] + ([] if scale is None else [scale]))


def unpack(packed, bits, columns):
    """The integers of a row, from the lowest bits of each word up."""
    data = np.ascontiguousarray(packed).view(np.uint8)
    stream = np.unpackbits(data, axis=-1, bitorder="little").reshape(*packed.shape[:-1], columns, bits)
    return (stream * (1 << np.arange(bits))).sum(-1)


def affine_values(parts, group, bits, columns):
    packed, scales, biases = parts
    numbers = unpack(packed, bits, columns).astype(np.float64)
    spread = lambda a: np.repeat(wide(a), group, -1)
    return numbers * spread(scales) + spread(biases)


def add_formats(cases):
    for mode, group, bits in FORMATS:
        columns = 128
        types = ("f32", "f16", "bf16") if (group, bits) in ((64, 4), (32, 8)) or mode != "affine" else ("f32",)
        for dtype in types:
            w = noise((2, columns), dtype, key=bits)
            parts = quantized(w, mode, group, bits)
            attributes = dict(group_size=group, bits=bits, mode=Atom(mode))
            label = f"{dtype} {mode} {group} {bits}"
            cases.add(label, op("quantize", **attributes), [w, None], parts)
            biases = parts[2] if mode == "affine" else None
            out = dtype if mode == "affine" else None
            inputs = [*parts[:2], biases, None]
            back = run_mx(lambda w, s, b, _: mx.dequantize(w, s, b, group, bits, mode, dtype=None if out else mx_dtype(dtype)), inputs)[0]
            if mode == "affine":
                formula = affine_values(parts, group, bits, columns)
                assert np.allclose(formula, wide(back), atol=1e-2, rtol=2e-2), label
                back = arr(formula, dtype)
            cases.add(label, op("dequantize", **attributes, dtype=None if out else Atom(dtype)), inputs, back, "summed")
            for transpose in (True, False):
                for rows in ((), (1,), (3,), (2, 3)):
                    if rows != (3,) and dtype != "f32":
                        continue
                    if rows != (3,) and (mode, group, bits) not in (("affine", 64, 4), ("mxfp4", 32, 4)):
                        continue
                    x = noise((*rows, columns if transpose else 2), dtype, -1, 1, 1)
                    weight = np.swapaxes(wide(back), -1, -2) if transpose else wide(back)
                    operation = op("quantized_matmul", transpose=transpose, **attributes)
                    mlx = lambda x, w, s, b: mx.quantized_matmul(x, w, s, b, transpose, group, bits, mode)
                    wanted = arr(wide(x) @ weight, dtype)
                    cases.add(f"{label} {list(x.shape)} {transpose}", operation, [x, *parts[:2], biases], wanted, "quantized", mlx=mlx if len(x.shape) > 1 else None)
    # What is left out is MLX's own choice.
    w = noise((2, 64), "f32")
    for mode in ("affine", "mxfp4", "mxfp8", "nvfp4"):
        attributes = dict(group_size=None, bits=None, mode=Atom(mode))
        parts = quantized(w, mode, None, None)
        cases.add(f"f32 {mode} by default", op("quantize", **attributes), [w, None], parts)
        inputs = [*parts[:2], parts[2] if mode == "affine" else None, None]
        cases.add(f"f32 {mode} by default", op("dequantize", **attributes, dtype=None), inputs, None, "rounded", mlx=lambda w, s, b, _: mx.dequantize(w, s, b, mode=mode))
        x = noise((2, 64), "f32", key=1)
        cases.add(f"f32 {mode} by default", op("quantized_matmul", transpose=True, **attributes), [x, *inputs[:3]], None, "quantized", mlx=lambda x, w, s, b: mx.quantized_matmul(x, w, s, b, mode=mode))
    batch = noise((2, 3, 64), "f32")
    parts = quantized(batch, "affine", 64, 4)
    attributes = dict(group_size=64, bits=4, mode=Atom("affine"))
    cases.add("f32 batch", op("quantize", **attributes), [batch, None], parts)
    cases.add("f32 batch", op("dequantize", **attributes, dtype=None), [*parts, None], arr(affine_values(parts, 64, 4, 64), "f32"), "rounded")
    x = noise((2, 5, 64), "f32", key=2)
    cases.add("f32 batch", op("quantized_matmul", transpose=True, **attributes), [x, *parts], arr(wide(x) @ np.swapaxes(affine_values(parts, 64, 4, 64), -1, -2), "f32"), "quantized")


def add_gather(cases):
    for mode, group, bits in (("affine", 64, 4), ("affine", 32, 8), ("mxfp4", 32, 4), ("nvfp4", 16, 4)):
        for dtype in ("f32", "bf16"):
            w = noise((4, 3, 64), dtype)
            parts = quantized(w, mode, group, bits)
            biases = parts[2] if mode == "affine" else None
            for label, shape, left, right, is_sorted in (
                ("right", (3, 1, 64), None, [0, 3, 3], False),
                ("sorted", (3, 1, 64), None, [0, 1, 3], True),
                ("both", (3, 2, 64), [2, 0], [[1], [2]], False),
            ):
                x = noise(shape, dtype, -1, 1, 1)
                operation = op("gather_qmm", transpose=True, group_size=group, bits=bits, mode=Atom(mode), sorted=is_sorted)
                inputs = [x, *parts[:2], biases, None if left is None else arr(left, "u32"), arr(right, "u32")]
                mlx = lambda x, w, s, b, l, r: mx.gather_qmm(x, w, s, b, l, r, True, group, bits, mode, sorted_indices=is_sorted)
                cases.add(f"{dtype} {mode} {group} {bits} {label}", operation, inputs, None, "quantized", mlx=mlx)


def add_qqmm(cases):
    """On the CPU MLX multiplies one row by quantized weights; the rest of it is the GPU's."""
    for mode, group, bits in (("mxfp8", 32, 8), ("nvfp4", 16, 4)):
        for dtype in ("f32", "bf16"):
            w, x = noise((5, 64), dtype), noise((1, 64), dtype, -1, 1, 1)
            parts = quantized(w, mode, group, bits)
            operation = op("qqmm", group_size=group, bits=bits, mode=Atom(mode))
            cases.add(f"{dtype} {mode}", operation, [x, *parts, None, None], None, "quantized", mlx=lambda x, w, s, a, b: mx.qqmm(x, w, s, group, bits, mode))


def int8_product(x, w, scales, bias):
    """Each row of x is rounded to integers of 8 bits. All roundings are those of f32, and sums are exact."""
    x32, w = x.astype(np.float32), w.astype(np.int64)
    most = np.abs(x32).max(-1, keepdims=True)
    with np.errstate(all="ignore"):
        factor = np.where(most < np.float32(1e-30), np.float32(0), np.float32(127) / most)
        odd = ~np.isfinite(x32).all(-1, keepdims=True)
        integers = np.where(odd, np.float32(0), np.rint(x32 * factor)).astype(np.int64)
        rows = np.where(odd, np.float32(np.nan), most / np.float32(127))
        product = (integers @ w.T).astype(np.float32) * (rows * scales.astype(np.float32))
        product = product if bias is None else product + bias.astype(np.float32)
        return product.astype(x.dtype)


def packed(w):
    """Sixteen rows and four columns beside each other."""
    n, k = w.shape
    whole = np.pad(w, [(0, -n % 16), (0, -k % 4)])
    return whole.reshape(-(-n // 16), 16, -(-k // 4), 4).transpose(0, 2, 1, 3)


def add_int8(cases):
    for dtype in ("f32", "f16", "bf16"):
        for shape, n in (((5,), 3), ((1, 64), 40), ((3, 70), 33), ((2, 7, 130), 5), ((20, 384), 64), ((0, 8), 3), ((3, 8), 0)):
            for own in dict.fromkeys(("f32", dtype)) if shape == (3, 70) else ("f32",):
                x = noise(shape, dtype)
                w = arr(rng_for("int8", shape, n).integers(-128, 127, (n, shape[-1]), endpoint=True), "s8")
                scales, bias = noise((n,), own, 0.0, 0.02, 1), noise((n,), own, key=2)
                for given in (bias, None):
                    label = f"{dtype} {list(shape)} {n} {own} {'bias' if given is not None else 'no bias'}"
                    wanted = int8_product(x, w, scales, given)
                    cases.add(label, op("int8_matmul"), [x, w, scales, given], wanted, "rounded")
                    cases.add(f"{label} packed", op("int8_matmul"), [x, packed(w), scales, given], wanted, "rounded")
    x = noise((6, 9), "f32")
    x[0, 4], x[1, 0], x[2, 8], x[3], x[4] = NAN, INF, -INF, 0.0, 1e-38
    w = arr(rng_for("int8", "odd").integers(-128, 127, (4, 9), endpoint=True), "s8")
    scales, bias = noise((4,), "f32", 0.0, 0.02, 1), noise((4,), "f32", key=2)
    cases.add("f32 rows of NaN, infinities and zeros", op("int8_matmul"), [x, w, scales, bias], int8_product(x, w, scales, bias), "rounded")


def add(cases):
    add_formats(cases)
    add_int8(cases)
    add_gather(cases)
    add_qqmm(cases)
