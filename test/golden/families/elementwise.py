"""Operations on the elements of one array."""

import mlx.core as mx
import numpy as np
import scipy.linalg
import scipy.special

from .common import *

SPECIAL = [NAN, INF, -INF, 0.0, -0.0]
SHAPES = [(), (0,), (1,), (2, 0, 3), (2, 1, 3, 2)]

# Exact on every type they take: name, types, values beside the usual ones, reference.
EXACT = {
    "abs": (ALL, np.abs),
    "negative": (INTS + INEXACT, np.negative),
    "square": (ALL, np.square),
    "ceil": (REAL, np.ceil),
    "floor": (REAL, np.floor),
    "trunc": (REAL, np.trunc),
    "real": (["f32", "s32", "c64"], np.real),
    "imag": (["f32", "c64"], np.imag),
    "conjugate": (["f32", "s32", "c64"], np.conjugate),
    "copy": (ALL, lambda x: x),
    "logical_not": (ALL, np.logical_not),
    "isnan": (ALL, np.isnan),
    "isinf": (ALL, np.isinf),
    "isfinite": (ALL, np.isfinite),
    "isposinf": (REAL, lambda x: np.isposinf(x.astype(np.float64))),
    "isneginf": (REAL, lambda x: np.isneginf(x.astype(np.float64))),
}

# Rounded: name, reference, values of floats, of integers, of complex numbers.
WIDE = [-7.5, -3.0, -1.0, -0.5, -1e-3, 1e-3, 0.25, 1.0, 2.0, 3.75, 9.0]
UNIT = [-1.0, -0.875, -0.5, -1e-3, 1e-3, 0.25, 0.75, 1.0]
POSITIVE = [1e-3, 0.1, 0.5, 1.0, 2.0, 2.71828, 10.0, 1000.0]
BEYOND = [-2.0, 1.5]
PLANE = [0.5 + 0.25j, -1.25 + 0.5j, 2.0 - 1.5j, -0.75 - 0.3j, 0.1 + 2.0j]
ROUNDED = {
    "exp": (np.exp, WIDE + [88.0, -88.0, 710.0], [0, 1, 5], PLANE),
    "expm1": (np.expm1, WIDE + [1e-6, 20.0], [0, 1, 5], None),
    "log": (np.log, POSITIVE + [-1.0, 1e-7], [0, 1, 5], PLANE),
    "log1p": (np.log1p, POSITIVE + [-0.5, 1e-7, -1.0, -2.0], [0, 1, 5], PLANE),
    "log2": (np.log2, POSITIVE + [-1.0], [0, 1, 8], PLANE),
    "log10": (np.log10, POSITIVE + [-1.0], [0, 1, 10], PLANE),
    "sin": (np.sin, WIDE + [100.0], [0, 1, 5], PLANE),
    "cos": (np.cos, WIDE + [100.0], [0, 1, 5], PLANE),
    "tan": (np.tan, WIDE, [0, 1, 5], PLANE),
    "arcsin": (np.arcsin, UNIT + BEYOND, [0, 1], PLANE),
    "arccos": (np.arccos, UNIT + BEYOND, [0, 1], PLANE),
    "arctan": (np.arctan, WIDE, [0, 1, 5], PLANE),
    "sinh": (np.sinh, WIDE, [0, 1, 5], PLANE),
    "cosh": (np.cosh, WIDE, [0, 1, 5], PLANE),
    "tanh": (np.tanh, WIDE + [40.0, -40.0], [0, 1, 5], PLANE),
    "arcsinh": (np.arcsinh, WIDE, [0, 1, 5], PLANE),
    "arccosh": (np.arccosh, POSITIVE + [-1.0], [1, 2, 5], PLANE),
    "arctanh": (np.arctanh, UNIT + BEYOND, [0, 1], PLANE),
    "erf": (scipy.special.erf, WIDE, [0, 1, 2], None),
    "erfinv": (scipy.special.erfinv, UNIT + [0.99, -0.999], [0, 1], None),
    "sqrt": (np.sqrt, POSITIVE + [-1.0], [0, 1, 9], PLANE),
    "rsqrt": (lambda x: 1 / np.sqrt(x), POSITIVE + [-1.0], [1, 4, 9], PLANE),
    "reciprocal": (lambda x: 1 / x, WIDE, [1, 2, 5], PLANE),
    "sigmoid": (scipy.special.expit, WIDE + [100.0, -100.0], [0, 1, 5], None),
    "degrees": (lambda x: x * (180 / np.pi), WIDE, [0, 1, 5], PLANE),
    "radians": (lambda x: x * (np.pi / 180), WIDE, [0, 1, 5], PLANE),
}


def usual(dtype):
    if dtype == "bool":
        return arr([True, False, True], "bool")
    if dtype in INTS:
        return extremes(dtype)
    if dtype == "c64":
        return arr(PLANE + [0j, 1 + 0j, 3 - 4j, -2j], "c64")
    return arr([-2.5, -1.5, -0.5, -1e-3, 0.49, 0.5, 1.5, 2.5, 3.75, 1000.25] + SPECIAL, dtype)


def add_exact(cases):
    for name, (dtypes, reference) in EXACT.items():
        mlx = getattr(mx, name, None) or (lambda x: mx.array(x))
        for dtype in dtypes:
            values = usual(dtype)
            # The sign of a zero counts where it is defined.
            tolerance = "bits" if name in ("abs", "negative", "ceil", "floor", "trunc", "copy") else "exact"
            if dtype == "c64" or dtype in HALF:
                tolerance = "rounded" if name in ("abs", "square") else tolerance
            cases.like_mlx(dtype, op(name), [values], reference, mlx, tolerance)
        for shape in SHAPES:
            cases.like_mlx(f"f32 {list(shape)}", op(name), [noise(shape, "f32")], reference, mlx, "exact")


def sign(x):
    return x if x.dtype == np.bool_ else np.sign(x)


def add_sign(cases):
    for dtype in ALL:
        values = usual(dtype)
        values = values[~np.isnan(values)] if dtype in INEXACT else values
        cases.like_mlx(dtype, op("sign"), [values], sign, mx.sign, "rounded" if dtype == "c64" else "exact")
    cases.like_mlx("f32 scalar", op("sign"), [arr(-3.5, "f32")], np.sign, mx.sign)
    cases.like_mlx("f32 empty", op("sign"), [arr([], "f32")], np.sign, mx.sign)


def add_round(cases):
    for dtype in INTS + FLOATS:
        values = usual(dtype)
        cases.like_mlx(dtype, op("round", decimals=0), [values], np.round, mx.round, "exact")
    values = [1234.5678, -0.13, 2.68, -7.004, 0.0]
    for dtype in ("f32", "f64"):
        for decimals in (1, 2, -1, -2):
            cases.like_mlx(
                f"{dtype} decimals {decimals}",
                op("round", decimals=decimals),
                [arr(values, dtype)],
                lambda x: np.round(x, decimals),
                lambda x: mx.round(x, decimals),
                "rounded",
            )
    tens = arr([15, 25, 34, -15, -36, 0], "s32")
    cases.like_mlx("s32 tens", op("round", decimals=-1), [tens], lambda x: np.round(x, -1), lambda x: mx.round(x, -1))


def add_round_away(cases):
    def away(x):
        return np.trunc(x + np.copysign(0.5, x)) if x.dtype.kind == "f" else x

    for dtype in REAL:
        values = arr([0, 1, 2, 100] if dtype in UNSIGNED + ["bool"] else [0, 1, -1, 100, -100], dtype)
        if dtype in FLOATS:
            values = arr([0.5, -0.5, 1.5, -1.5, 2.5, 2.25, -2.75, 0.25, -0.25, 0.0, 100.5, -100.5, NAN, INF, -INF], dtype)
        wanted = arr(away(wide(values)), dtype) if dtype in FLOATS else values
        cases.add(dtype, op("round_away"), [values], wanted)
    # The sum with a half itself would be 1, and odd numbers whose neighbours are 1 apart would become even.
    values = arr([0.49999997, -0.49999997, 8388609.0, -8388609.0, 8388607.5, 16777215.0], "f32")
    wanted = arr([0, 0, 8388609.0, -8388609.0, 8388608.0, 16777215.0], "f32")
    cases.add("f32 borders", op("round_away"), [values], wanted)
    for shape in ((), (0,), (2, 0, 3), (2, 1, 3, 2)):
        values = noise(shape, "f32")
        cases.add(f"f32 {list(shape)}", op("round_away"), [values], arr(away(wide(values)), "f32"))


def add_rounded(cases):
    for name, (reference, floats, ints, plane) in ROUNDED.items():
        mlx = getattr(mx, name)
        operation = op(name)
        for dtype in FLOATS:
            values = arr(floats + SPECIAL, dtype)
            cases.like_mlx(dtype, operation, [values], reference, mlx, "rounded")
        for dtype in ["bool", "u8", "s32"] + (INTS if name in ("exp", "sqrt") else []):
            label = f"{dtype} gives f32"
            if f"{name}/{label}" in cases.names:
                continue
            values = arr(ints, dtype) if dtype != "bool" else arr([i != 0 for i in ints], "bool")
            cases.like_mlx(label, operation, [values], lambda x: reference(x.astype(np.float64)), mlx, "rounded")
        if plane:
            cases.like_mlx("c64", operation, [arr(plane, "c64")], reference, mlx, "rounded")
        for shape in SHAPES:
            values = noise(shape, "f32", 0.1, 0.9)
            cases.like_mlx(f"f32 {list(shape)}", operation, [values], reference, mlx, "rounded")


def add_cbrt(cases):
    values = [-27.0, -8.0, -1.0, -1e-3, 1e-6, 0.125, 0.5, 1.0, 2.0, 8.0, 1000.0, 60000.0] + SPECIAL
    for dtype in FLOATS:
        given = arr(values, dtype)
        cases.add(dtype, op("cbrt"), [given], arr(np.cbrt(wide(given)), dtype), "rounded")
    for dtype in ("f32", "bf16"):
        given = arr([1e-38, 1e-30, 1e30, -3e38], dtype)
        cases.add(f"{dtype} far", op("cbrt"), [given], arr(np.cbrt(wide(given)), dtype), "rounded")
    given = arr([-27, 0, 1, 8, 100], "s32")
    cases.add("s32 gives f32", op("cbrt"), [given], arr(np.cbrt(given), "f32"), "rounded")
    for shape in SHAPES:
        given = noise(shape, "f32")
        cases.add(f"f32 {list(shape)}", op("cbrt"), [given], arr(np.cbrt(wide(given)), "f32"), "rounded")


def add_erfc(cases):
    # The tail is what erfc is for: relative accuracy where 1 - erf has none.
    values = [-3.0, -1.0, -0.5, -1e-3, 1e-3, 0.25, 0.49, 0.51, 1.0, 2.0, 3.0, 5.0] + SPECIAL
    for dtype in FLOATS:
        given = arr(values, dtype)
        cases.add(dtype, op("erfc"), [given], arr(scipy.special.erfc(wide(given)), dtype), "tail")
    given = arr([4.0, 6.0, 9.0], "f32")
    cases.add("f32 tail", op("erfc"), [given], arr(scipy.special.erfc(wide(given)), "f32"), "tail")
    given = arr([4.0, 6.0, 9.0, 15.0, 26.0, 30.0], "f64")
    cases.add("f64 tail", op("erfc"), [given], arr(scipy.special.erfc(given), "f64"), "tail")
    given = arr([-2, 0, 1, 3], "s32")
    cases.add("s32 gives f32", op("erfc"), [given], arr(scipy.special.erfc(given), "f32"), "tail")
    for shape in SHAPES:
        given = noise(shape, "f32")
        cases.add(f"f32 {list(shape)}", op("erfc"), [given], arr(scipy.special.erfc(wide(given)), "f32"), "tail")


def add_bits(cases):
    for dtype in INTS:
        values = np.concatenate([extremes(dtype), noise((6,), dtype, -30, 30)])
        bits = 8 * values.dtype.itemsize
        unsigned = values.view(np.dtype(f"u{values.dtype.itemsize}"))
        ones = [bin(int(x)).count("1") for x in unsigned]
        zeros = [bits - int(x).bit_length() for x in unsigned]
        cases.add(dtype, op("population_count"), [values], arr(ones, dtype))
        cases.add(dtype, op("count_leading_zeros"), [values], arr(zeros, dtype))
        cases.like_mlx(dtype, op("bitwise_invert"), [values], np.invert, mx.bitwise_invert)
    for name, value in (("population_count", 3), ("count_leading_zeros", 27)):
        cases.add("s32 scalar", op(name), [arr(7, "s32")], arr(value if name == "population_count" else 29, "s32"))
        cases.add("u8 empty", op(name), [arr([], "u8", (0, 2))], arr([], "u8", (0, 2)))
    cases.like_mlx("bool", op("bitwise_invert"), [arr([True, False], "bool")], np.invert, mx.bitwise_invert)


def add_nan_to_num(cases):
    for dtype in ("f16", "bf16", "f32"):
        values = arr([NAN, INF, -INF, 1.5, -0.0], dtype)
        largest = float(ml_dtypes.finfo(np_dtype(dtype)).max)
        cases.like_mlx(
            f"{dtype} defaults",
            op("nan_to_num", nan=0.0, posinf=None, neginf=None),
            [values],
            lambda x: np.nan_to_num(x, nan=0.0, posinf=largest, neginf=-largest),
            lambda x: mx.nan_to_num(x),
        )
        cases.like_mlx(
            f"{dtype} given",
            op("nan_to_num", nan=-1.5, posinf=7.0, neginf=-8.0),
            [values],
            lambda x: np.nan_to_num(x, nan=-1.5, posinf=7.0, neginf=-8.0),
            lambda x: mx.nan_to_num(x, nan=-1.5, posinf=7.0, neginf=-8.0),
        )
    values = arr([1, -2, 3], "s32")
    cases.like_mlx("s32", op("nan_to_num", nan=9.0, posinf=1.0, neginf=None), [values], lambda x: x, mx.nan_to_num)
    values = noise((0, 2), "f32")
    cases.like_mlx("f32 empty", op("nan_to_num", nan=9.0, posinf=1.0, neginf=None), [values], lambda x: x, mx.nan_to_num)


def add_hadamard(cases):
    for dtype in ("f16", "bf16", "f32"):
        for size in (1, 2, 8, 64):
            matrix = scipy.linalg.hadamard(size)
            cases.like_mlx(
                f"{dtype} {size}",
                op("hadamard_transform", scale=None),
                [noise((3, size), dtype)],
                lambda x: (x @ matrix.T) / np.sqrt(size),
                mx.hadamard_transform,
                "summed",
            )
        for size in (12, 20, 28, 24, 40):
            values = noise((2, 1, size), dtype)
            theirs = run_mx(lambda x: mx.hadamard_transform(x), [values])[0]
            lengths = np.linalg.norm(wide(values), axis=-1), np.linalg.norm(wide(theirs), axis=-1)
            assert np.allclose(*lengths, rtol=2e-2), "a Hadamard transform keeps lengths"
            cases.add(f"{dtype} {size}", op("hadamard_transform", scale=None), [values], theirs, "summed")
    matrix = scipy.linalg.hadamard(4)
    cases.like_mlx(
        "f32 scale",
        op("hadamard_transform", scale=0.25),
        [noise((2, 3, 4), "f32")],
        lambda x: x @ matrix.T * 0.25,
        lambda x: mx.hadamard_transform(x, scale=0.25),
        "summed",
    )
    cases.like_mlx(
        "s32 gives f32",
        op("hadamard_transform", scale=None),
        [noise((2, 4), "s32")],
        lambda x: x @ matrix.T / 2,
        mx.hadamard_transform,
        "summed",
    )


def add(cases):
    add_exact(cases)
    add_sign(cases)
    add_round(cases)
    add_rounded(cases)
    add_cbrt(cases)
    add_erfc(cases)
    add_bits(cases)
    add_nan_to_num(cases)
    add_hadamard(cases)
    add_round_away(cases)
