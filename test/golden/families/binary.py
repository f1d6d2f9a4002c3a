"""Operations on the elements of two arrays, with broadcasting and promotion."""

import mlx.core as mx
import numpy as np

from .common import *

PAIRS = [((), ()), ((2, 3), ()), ((2, 1, 3), (4, 1)), ((2, 3, 1, 2), (1, 3, 4, 1)), ((0, 3), (3,)), ((1,), (0,))]
FLOAT_VALUES = [-3.5, -1.0, -0.0, 0.0, 0.5, 2.0, 1000.0, NAN, INF, -INF]


def grid(left, right):
    """Every value of one with every value of the other."""
    a, b = np.meshgrid(left, right, indexing="ij")
    return np.ravel(a), np.ravel(b)


def values(dtype, second=False):
    if dtype == "bool":
        return arr([False, True], "bool")
    if dtype in INTS:
        info = np.iinfo(np_dtype(dtype))
        return arr([v for v in (0, 1, 3, 100, info.max, info.min, -1, -7) if info.min <= v <= info.max], dtype)
    if dtype == "c64":
        return arr([1 + 2j, -0.5 + 0.25j, 3 - 4j, -1 - 1j], "c64")
    return arr(FLOAT_VALUES, dtype)


def wrapping(function):
    """NumPy's own for all but booleans, which it counts as numbers less readily than MLX."""

    def compute(a, b):
        if a.dtype == np.bool_:
            return function(a.astype(np.int8), b.astype(np.int8)).astype(np.bool_)
        return function(a, b)

    return compute


def add_arithmetic(cases):
    table = {
        "add": (np.add, mx.add, ALL, "rounded"),
        "subtract": (np.subtract, mx.subtract, ALL, "rounded"),
        "multiply": (np.multiply, mx.multiply, ALL, "rounded"),
        "maximum": (np.maximum, mx.maximum, ALL, "exact"),
        "minimum": (np.minimum, mx.minimum, ALL, "exact"),
        "equal": (np.equal, mx.equal, ALL, "exact"),
        "not_equal": (np.not_equal, mx.not_equal, ALL, "exact"),
        "less": (np.less, mx.less, REAL, "exact"),
        "less_equal": (np.less_equal, mx.less_equal, REAL, "exact"),
        "greater": (np.greater, mx.greater, REAL, "exact"),
        "greater_equal": (np.greater_equal, mx.greater_equal, REAL, "exact"),
        "logical_and": (np.logical_and, mx.logical_and, ALL, "exact"),
        "logical_or": (np.logical_or, mx.logical_or, ALL, "exact"),
        "logical_xor": (np.logical_xor, None, ALL, "exact"),
        "bitwise_and": (np.bitwise_and, mx.bitwise_and, ["bool"] + INTS, "exact"),
        "bitwise_or": (np.bitwise_or, mx.bitwise_or, ["bool"] + INTS, "exact"),
        "bitwise_xor": (np.bitwise_xor, mx.bitwise_xor, ["bool"] + INTS, "exact"),
    }
    for name, (reference, mlx, dtypes, tolerance) in table.items():
        compute = wrapping(reference) if name in ("add", "subtract", "multiply") else reference
        mlx = mlx or (lambda a, b: mx.not_equal(a != 0, b != 0))
        for dtype in dtypes:
            a, b = grid(values(dtype), values(dtype))
            cases.like_mlx(dtype, op(name), [a, b], compute, mlx, tolerance)
        for left, right in PAIRS:
            dtype = "s32" if name.startswith("bitwise") else "f32"
            pair = [noise(left, dtype), noise(right, dtype, key=1)]
            cases.like_mlx(f"{dtype} {list(left)} {list(right)}", op(name), pair, reference, mlx, tolerance)
        if name.startswith("logical"):
            # A number is zero when both of its parts are.
            pair = [arr([1j, 1j, 0j, 0j], "c64"), arr([2j, 0j, 1 + 0j, 0j], "c64")]
            cases.add("c64 imaginary", op(name), pair, reference(*pair))


def add_promotion(cases):
    """Two types meet in the one that MLX promotes them to, and so in every operation of two arrays."""
    for left in ALL:
        for right in ALL:
            if left == right:
                continue
            pair = [arr([0, 1, 5], left), arr([1, 1, 2], right)]
            both = MLX_NAMES[mx.result_type(mx_dtype(left), mx_dtype(right))]
            total = (
                np.logical_or(*pair) if both == "bool" else sum(p.astype(np_dtype(both)) for p in pair).astype(np_dtype(both))
            )
            cases.add(f"{left} and {right}", op("add"), pair, total, "exact", mlx=mx.add)
    for left, right in (("s8", "u8"), ("s32", "f16"), ("u32", "s32"), ("bool", "s64"), ("f16", "bf16"), ("s32", "c64")):
        pair = [arr([1, 4, 5], left), arr([2, 3, 2], right)]
        for name in ("multiply", "subtract", "maximum", "divide", "power", "equal", "logical_and"):
            function = {"power": np.power, "divide": np.divide}.get(name) or getattr(np, name)

            def compute(a, b):
                kind = np.complex128 if "c64" in (left, right) else np.float64
                return function(a.astype(kind), b.astype(kind))

            cases.like_mlx(f"{left} and {right}", op(name), pair, compute, getattr(mx, name), "rounded")
        if "f16" in (left, right) or "c64" in (left, right):
            continue
        both = MLX_NAMES[mx.result_type(mx_dtype(left), mx_dtype(right))]
        a, b = (p.astype(np_dtype(both)) for p in pair)
        cases.add(f"{left} and {right}", op("quotient"), pair, (a // b).astype(np_dtype(both)))
        cases.add(f"{left} and {right}", op("fmod"), pair, np.fmod(a, b).astype(np_dtype(both)))


def add_divide(cases):
    for dtype in ALL:
        a, b = grid(values(dtype), values(dtype))
        cases.like_mlx(
            dtype,
            op("divide"),
            [a, b],
            lambda a, b: np.true_divide(a.astype(np.float64) if a.dtype.kind in "bui" else a, b),
            mx.divide,
            "rounded",
        )
    for left, right in PAIRS:
        pair = [noise(left, "f32"), noise(right, "f32", 0.5, 2.0, 1)]
        cases.like_mlx(f"f32 {list(left)} {list(right)}", op("divide"), pair, np.divide, mx.divide, "rounded")


def quotient(a, b):
    """Rounded toward zero, wrapped, 0 by zero."""
    out = []
    for x, y in zip(a.tolist(), b.tolist()):
        q = 0 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        out.append(q)
    return wrapped(out, a.dtype)


def wrapped(numbers, dtype):
    bits = 8 * dtype.itemsize
    unsigned = np.array([n % (1 << bits) for n in numbers], np.uint64)
    return unsigned.astype(np.dtype(f"u{dtype.itemsize}")).view(dtype)


def integer(function):
    """In Python's integers, wrapped; 0 by zero as in NumPy and Nx."""

    def compute(a, b):
        return wrapped([0 if y == 0 else function(x, y) for x, y in zip(a.tolist(), b.tolist())], a.dtype)

    return compute


def fmod(x, y):
    return abs(x) % abs(y) * (1 if x >= 0 else -1)


def add_division(cases):
    for dtype in INTS:
        a, b = grid(values(dtype), values(dtype))
        floor, rest = integer(lambda x, y: x // y)(a, b), integer(lambda x, y: x % y)(a, b)
        cases.add(dtype, op("quotient"), [a, b], quotient(a, b))
        cases.add(dtype, op("floor_divide"), [a, b], floor)
        cases.add(dtype, op("remainder"), [a, b], rest)
        cases.add(dtype, op("fmod"), [a, b], integer(fmod)(a, b))
        cases.add(dtype, op("divmod"), [a, b], [floor, rest])
    # Finite values by more than zero: what a quotient by zero or infinity leaves over is tested apart.
    left = [-7.5, -3.0, -0.1, 0.1, 2.0, 5.0, 1000.25]
    right = [-3.0, -0.7, 0.35, 2.0, 1e4]
    for dtype in FLOATS:
        a, b = grid(arr(left, dtype), arr(right, dtype))
        # Of 16 bits the quotient itself is rounded before it is rounded down.
        cases.add(dtype, op("floor_divide"), [a, b], arr(np.floor_divide(wide(a), wide(b)), dtype), "rounded", mlx=mx.floor_divide)
        cases.add(dtype, op("remainder"), [a, b], arr(np.remainder(wide(a), wide(b)), dtype), "rounded", mlx=mx.remainder)
        # C's remainder is exact in every type.
        cases.add(dtype, op("fmod"), [a, b], arr(np.fmod(wide(a), wide(b)), dtype), "bits")
        both = [arr(np.floor_divide(wide(a), wide(b)), dtype), arr(np.remainder(wide(a), wide(b)), dtype)]
        cases.add(dtype, op("divmod"), [a, b], both, "rounded", mlx=mx.divmod)
        a = arr([5.0, -5.0, INF, 5.0, NAN, 1e-20, -1e-20, 0.0], dtype)
        b = arr([INF, INF, 3.0, 0.0, 1.0, 3.0, 3.0, 3.0], dtype)
        with np.errstate(all="ignore"):
            cases.add(f"{dtype} special", op("fmod"), [a, b], arr(np.fmod(wide(a), wide(b)), dtype), "exact")
    for left, right in PAIRS:
        pair = [noise(left, "s32"), np.maximum(noise(right, "s32", key=1), 1)]
        label = f"s32 {list(left)} {list(right)}"
        cases.add(label, op("quotient"), pair, np.asarray(np.trunc(np.true_divide(*pair))).astype(np.int32))
        cases.add(label, op("floor_divide"), pair, np.asarray(np.floor_divide(*pair)))
        cases.add(label, op("remainder"), pair, np.asarray(np.remainder(*pair)))
        cases.add(label, op("fmod"), pair, np.asarray(np.fmod(*pair)))
        cases.add(label, op("divmod"), pair, [np.asarray(np.floor_divide(*pair)), np.asarray(np.remainder(*pair))])


def add_power(cases):
    for dtype in FLOATS:
        a, b = grid(arr([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, INF], dtype), arr([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0], dtype))
        cases.like_mlx(dtype, op("power"), [a, b], np.power, mx.power, "rounded")
    for dtype in INTS:
        a, b = grid(arr([0, 1, 2, 3, 7], dtype), arr([0, 1, 2, 5, 20], dtype))
        numbers = [x**y for x, y in zip(a.tolist(), b.tolist())]
        cases.add(dtype, op("power"), [a, b], wrapped(numbers, a.dtype), mlx=mx.power)
    cases.add("bool", op("power"), list(grid(values("bool"), values("bool"))), arr([True, False, True, True], "bool"), mlx=mx.power)
    a, b = grid(arr([1 + 1j, 2 - 0.5j], "c64"), arr([2 + 0j, 0.5 + 0.5j], "c64"))
    cases.like_mlx("c64", op("power"), [a, b], np.power, mx.power, "rounded")
    for left, right in PAIRS:
        pair = [noise(left, "f32", 0.5, 2.0), noise(right, "f32", key=1)]
        cases.like_mlx(f"f32 {list(left)} {list(right)}", op("power"), pair, np.power, mx.power, "rounded")


def add_rounded(cases):
    for dtype in FLOATS:
        a, b = grid(arr([-2.0, -0.0, 0.0, 1.5, INF, NAN], dtype), arr([-3.0, -0.0, 0.0, 0.5, -INF], dtype))
        cases.like_mlx(dtype, op("arctan2"), [a, b], np.arctan2, mx.arctan2, "rounded")
        a, b = grid(arr([-200.0, -1.0, 0.0, 3.0, INF, -INF], dtype), arr([-3.0, 0.5, -INF, INF, NAN], dtype))
        cases.like_mlx(dtype, op("logaddexp"), [a, b], np.logaddexp, mx.logaddexp, "rounded")
    for name in ("arctan2", "logaddexp"):
        compute, mlx = getattr(np, name), getattr(mx, name)
        pair = [arr([0, 1, 3], "s32"), arr([2, 1, 0], "s32")]
        cases.like_mlx("s32 gives f32", op(name), pair, lambda a, b: compute(a.astype(np.float64), b), mlx, "rounded")
        for left, right in PAIRS:
            pair = [noise(left, "f32"), noise(right, "f32", key=1)]
            cases.like_mlx(f"f32 {list(left)} {list(right)}", op(name), pair, compute, mlx, "rounded")
    pair = [arr([1 + 1j, 0.5 - 2j], "c64"), arr([-1 + 0.5j, 2 + 0j], "c64")]
    cases.like_mlx("c64", op("logaddexp"), pair, lambda a, b: np.log(np.exp(a) + np.exp(b)), mx.logaddexp, "rounded")


def add_shifts(cases):
    for dtype in INTS:
        bits = 8 * np_dtype(dtype).itemsize
        by = arr([0, 1, 3, bits - 1, bits, bits + 1, min(100, 127)], dtype)
        a, b = grid(extremes(dtype), by)
        left = wrapped([x << y if y < bits else 0 for x, y in zip(a.tolist(), b.tolist())], a.dtype)
        right = wrapped([x >> y for x, y in zip(a.tolist(), b.tolist())], a.dtype)
        cases.add(dtype, op("left_shift"), [a, b], left)
        cases.add(dtype, op("right_shift"), [a, b], right)
    for left, right in PAIRS:
        pair = [noise(left, "s32", -100, 100), np.abs(noise(right, "s32", key=1))]
        label = f"s32 {list(left)} {list(right)}"
        cases.add(label, op("left_shift"), pair, np.asarray(np.left_shift(*pair)), mlx=mx.left_shift)
        cases.add(label, op("right_shift"), pair, np.asarray(np.right_shift(*pair)), mlx=mx.right_shift)
    pair = [arr([-100, 100], "s32"), arr([2, 40], "u8")]
    cases.add("s32 by u8", op("left_shift"), pair, arr([-400, 0], "s32"))
    cases.add("s32 by u8", op("right_shift"), pair, arr([-25, 0], "s32"))


def add_closeness(cases):
    for dtype in FLOATS:
        a = arr([1.0, 1.0, NAN, INF, INF, 0.0, 100.0], dtype)
        b = arr([1.0, 1.1, NAN, INF, -INF, 1e-9, 100.5], dtype)
        for equal_nan in (False, True):
            for rtol, atol in ((1e-5, 1e-8), (0.01, 0.2)):
                more = dict(rtol=rtol, atol=atol, equal_nan=equal_nan)
                label = f"{dtype} {rtol} {atol} {equal_nan}"
                cases.like_mlx(label, op("isclose", **more), [a, b], lambda a, b: np.isclose(a, b, **more), lambda a, b: mx.isclose(a, b, **more))
                cases.like_mlx(label, op("allclose", **more), [a, b], lambda a, b: np.allclose(a, b, **more), lambda a, b: mx.allclose(a, b, **more))
                cases.like_mlx(f"{label} self", op("allclose", **more), [a, a], lambda a, b: np.allclose(a, b, **more), lambda a, b: mx.allclose(a, b, **more))
    more = dict(rtol=1e-5, atol=1e-8, equal_nan=False)
    for left, right in PAIRS:
        pair = [noise(left, "f32"), noise(right, "f32")]
        cases.like_mlx(f"f32 {list(left)} {list(right)}", op("isclose", **more), pair, lambda a, b: np.isclose(a, b, **more), lambda a, b: mx.isclose(a, b, **more))
        cases.like_mlx(f"f32 {list(left)} {list(right)}", op("allclose", **more), pair, lambda a, b: np.allclose(a, b, **more), lambda a, b: mx.allclose(a, b, **more))
    ints = [arr([1, 2, 3], "s32"), arr([1, 2, 4], "s32")]
    cases.like_mlx("s32", op("isclose", **more), ints, lambda a, b: np.isclose(a, b, **more), lambda a, b: mx.isclose(a, b, **more))

    for dtype in ALL:
        a = values(dtype)
        for equal_nan in (False, True):
            nan = bool(np.isnan(a.astype(np.complex128)).any())
            operation = op("array_equal", equal_nan=equal_nan)
            mlx = lambda a, b: mx.array_equal(a, b, equal_nan=equal_nan)
            cases.add(f"{dtype} {equal_nan} same", operation, [a, a], arr(equal_nan or not nan, "bool"), mlx=mlx)
            cases.add(f"{dtype} {equal_nan} other", operation, [a, a[::-1]], arr(False, "bool"), mlx=mlx)
    for left, right, answer in (((2,), (3,), False), ((1,), (3,), False), ((), (1,), False), ((0, 2), (0, 2), True), ((), (), True)):
        pair = [np.ones(left, np.float32), np.ones(right, np.float32)]
        mlx = lambda a, b: mx.array_equal(a, b)
        cases.add(f"f32 {list(left)} {list(right)}", op("array_equal", equal_nan=False), pair, arr(answer, "bool"), mlx=mlx)
    pair = [arr([1, 2], "s32"), arr([1.0, 2.0], "f32")]
    cases.add("s32 and f32", op("array_equal", equal_nan=False), pair, arr(True, "bool"), mlx=lambda a, b: mx.array_equal(a, b))


def add(cases):
    add_arithmetic(cases)
    add_promotion(cases)
    add_divide(cases)
    add_division(cases)
    add_power(cases)
    add_rounded(cases)
    add_shifts(cases)
    add_closeness(cases)
