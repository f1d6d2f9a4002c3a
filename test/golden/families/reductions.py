"""Reductions over axes, and running ones along an axis."""

import mlx.core as mx
import numpy as np
import scipy.special

from .common import *

AXES = [None, [0], [-1], [1, -1], [0, 2, 3], [3, 0]]


def axes_of(axes):
    return None if axes is None else tuple(axes)


def in_type(function):
    """Integer sums and products in the width of their result, where they wrap."""

    def compute(x, axis, keepdims, out):
        if x.dtype.kind in "bui":
            return function(x.astype(np_dtype(out)), axis=axis, keepdims=keepdims, dtype=np_dtype(out))
        return function(x, axis=axis, keepdims=keepdims)

    return compute


def plain(function):
    def compute(x, axis, keepdims, out):
        if x.dtype.kind in "bui" and out == "f32":
            x = x.astype(np.float64)
        return function(x, axis=axis, keepdims=keepdims)

    return compute


def logsumexp(x, axis, keepdims):
    top = np.max(x.real, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    out = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return out if keepdims else np.squeeze(out, axis)


TABLE = {
    "sum": (in_type(np.sum), ALL, "summed"),
    "prod": (in_type(np.prod), ALL, "multiplied"),
    "max": (plain(np.max), ALL, "exact"),
    "min": (plain(np.min), ALL, "exact"),
    "all": (plain(np.all), ALL, "exact"),
    "any": (plain(np.any), ALL, "exact"),
    "mean": (plain(np.mean), ALL, "summed"),
    "median": (plain(np.median), REAL, "rounded"),
    "logsumexp": (plain(logsumexp), REAL, "summed"),
}


def one(cases, name, label, values, axes, keepdims=False, tolerance=None, **more):
    function, _, usual = TABLE[name]
    mlx = lambda x: getattr(mx, name)(x, axis=axes_of(axes), keepdims=keepdims)
    out = name_of(run_mx(mlx, [values])[0])
    cases.like_mlx(
        label,
        op(name, axes=axes, keepdims=keepdims),
        [values],
        lambda x: function(x, axes_of(axes), keepdims, out),
        mlx,
        tolerance or usual,
        **more,
    )


def add_table(cases):
    for name, (_, dtypes, _) in TABLE.items():
        for dtype in dtypes:
            low, high = (0.5, 1.5) if name == "prod" and dtype in FLOATS else (-2.0, 2.0)
            values = noise((2, 3, 4), dtype, low, high)
            if name == "prod" and dtype in INTS:
                values = np.where(values == 0, 1, values).astype(values.dtype)
            one(cases, name, f"{dtype} axis 1", values, [1])
            one(cases, name, f"{dtype} all", values[0], None, True)
        for axes in AXES:
            for keepdims in (False, True):
                values = noise((2, 3, 1, 2), "f32", 0.5, 1.5)
                one(cases, name, f"f32 axes {axes} {keepdims}", values, axes, keepdims)
        one(cases, name, "f32 scalar", arr(1.5, "f32"), None)
        one(cases, name, "f32 long rows", noise((3, 1025), "f32", 0.99, 1.01), [-1])
        one(cases, name, "f32 long columns", noise((513, 5), "f32", 0.99, 1.01), [0])
        if name != "logsumexp":
            one(cases, name, "f32 no rows", noise((0, 3), "f32"), [1])
    for name in ("sum", "prod", "all", "any"):
        for dtype in ("bool", "s32", "f32", "bf16"):
            one(cases, name, f"{dtype} over none", noise((2, 0), dtype), [1])
        one(cases, name, "f32 over none at all", noise((0,), "f32"), None)
    one(cases, "mean", "f32 over none", noise((2, 0), "f32"), [1])


def add_special(cases):
    rows = [[1, NAN, 2], [INF, 1, 2], [-INF, 1, 2], [INF, -INF, 0], [-INF, -INF, -INF], [-0.0, -0.0, -0.0], [1, 2, 3]]
    for dtype in FLOATS:
        for name in ("sum", "prod", "max", "min", "all", "any", "mean", "logsumexp", "median"):
            if name == "median":
                values = arr([row for row in rows if not np.isinf(row).any()], dtype)
            else:
                values = arr(rows, dtype)
            one(cases, name, f"{dtype} special", values, [1])
    for dtype in INTS:
        edge = arr([np.iinfo(np_dtype(dtype)).max, 1, np.iinfo(np_dtype(dtype)).min, 3], dtype)
        for name in ("sum", "prod", "max", "min"):
            one(cases, name, f"{dtype} extremes", edge[:2], None)
            one(cases, name, f"{dtype} extremes of four", edge, [0])
    one(cases, "logsumexp", "f32 large", arr([[1000.0, 1000.0], [-1000.0, -1001.0]], "f32"), [1])
    one(cases, "all", "c64 imaginary", arr([[1j, 1j], [0j, 1j]], "c64"), [1])
    one(cases, "any", "c64 imaginary", arr([[0j, 1j], [0j, 0j]], "c64"), [1])
    # Many small numbers: what a naive 16-bit sum loses.
    for dtype in HALF:
        for name in ("sum", "mean", "logsumexp"):
            one(cases, name, f"{dtype} many", noise((4, 700), dtype, 0.5, 1.5), [1])
            one(cases, name, f"{dtype} many rows", noise((700, 3), dtype, 0.5, 1.5), [0])


def add_spread(cases):
    for name, function in (("var", np.var), ("std", np.std)):
        mlx_of = getattr(mx, name)

        def spread(label, values, axes, keepdims, ddof, tolerance="summed"):
            cases.like_mlx(
                label,
                op(name, axes=axes, keepdims=keepdims, ddof=ddof),
                [values],
                lambda x: function(x if x.dtype.kind == "c" else x.astype(np.float64), axis=axes_of(axes), keepdims=keepdims, ddof=ddof),
                lambda x: mlx_of(x, axis=axes_of(axes), keepdims=keepdims, ddof=ddof),
                tolerance,
            )

        for dtype in ALL:
            spread(f"{dtype} axis 1", noise((2, 5, 3), dtype), [1], False, 0)
        for axes in AXES[:4] + [[3]]:
            for keepdims in (False, True):
                spread(f"f32 axes {axes} {keepdims}", noise((2, 3, 2, 2), "f32"), axes, keepdims, 1)
        for dtype in HALF:
            spread(f"{dtype} many", noise((3, 700), dtype, -1, 3), [1], False, 0)
        spread("f32 far from zero", arr([1000.0, 1000.5, 1001.0, 999.0], "f32"), None, False, 0)
        spread("f32 equal", arr([3.0, 3.0, 3.0], "f32"), None, False, 1)
        spread("f32 nan", arr([3.0, NAN, 3.0], "f32"), None, False, 0)
        spread("f32 over none", noise((2, 0), "f32"), [1], False, 0)


def add_softmax(cases):
    def softmax(label, values, axes, precise, tolerance="rounded"):
        axis = tuple(range(values.ndim)) if axes is None else tuple(axes)

        def compute(x):
            x = x if x.dtype.kind == "c" else x.astype(np.float64)
            e = np.exp(x - np.max(x.real, axis=axis, keepdims=True))
            return e / np.sum(e, axis=axis, keepdims=True)

        operation = op("softmax", axes=axes, precise=precise)
        cases.like_mlx(label, operation, [values], compute, lambda x: mx.softmax(x, axis=axis, precise=precise), tolerance)

    for dtype in REAL:
        for precise in (False, True):
            softmax(f"{dtype} {precise}", noise((2, 3, 5), dtype, -4, 4), [-1], precise, "summed")
    for dtype in HALF:
        softmax(f"{dtype} many", noise((2, 700), dtype, -1, 1), [-1], True)
    for axes in (None, [0], [1], [0, -1]):
        softmax(f"f32 axes {axes}", noise((2, 3, 4), "f32", -4, 4), axes, False)
    softmax("f32 large", arr([[1000.0, 1001.0, 999.0], [-1000.0, -1002.0, 0.0]], "f32"), [-1], False)
    softmax("f32 masked", arr([[1.0, -INF, 2.0], [-INF, -INF, 0.0]], "f32"), [-1], False)
    softmax("f32 all masked", arr([[-INF, -INF], [NAN, 0.0]], "f32"), [-1], False)
    softmax("f32 one", noise((3, 1), "f32"), [-1], False)
    softmax("f32 long", noise((2, 1000), "f32", -5, 5), [-1], False)
    softmax("f32 no rows", noise((0, 3), "f32"), [-1], False)
    values = noise((2, 0), "f32")
    cases.add("f32 over none", op("softmax", axes=[-1], precise=False), [values], values)


def add_arg(cases):
    for name, function in (("argmax", np.argmax), ("argmin", np.argmin)):

        def pick(label, values, axis, keepdims):
            wanted = function(wide(values), axis=axis, keepdims=keepdims)
            operation = op(name, axis=axis, keepdims=keepdims, nan=Atom("first"))
            cases.add(label, operation, [values], arr(wanted, "u32"))

        for dtype in REAL:
            pick(f"{dtype} ties", noise((3, 7), dtype, -0.5, 0.5), 1, False)
        for dtype in ["s64", "u64"]:
            top = np.iinfo(np_dtype(dtype)).max
            pick(f"{dtype} extremes", arr([top - 1, top, 0, top], dtype), 0, False)
        for axis in (None, 0, 1, -1):
            for keepdims in (False, True):
                pick(f"f32 axis {axis} {keepdims}", noise((2, 3, 4), "f32"), axis, keepdims)
        for dtype in FLOATS:
            pick(f"{dtype} nan", arr([[1, NAN, 2, NAN], [3, INF, INF, -INF], [NAN, 1, 2, 3], [-0.0, 0.0, -0.0, 0.0]], dtype), 1, False)
            pick(f"{dtype} nan of all", arr([[1, 5, 2], [3, NAN, INF]], dtype), None, True)
        pick("f32 scalar", arr(2.0, "f32"), None, False)
        pick("f32 scalar kept", arr(2.0, "f32"), None, True)
        pick("f32 4-D", noise((2, 3, 1, 2), "f32"), 1, True)


def running(function, x, axis, reverse, inclusive, identity):
    x = np.flip(x, axis) if reverse else x
    out = function(x, axis)
    if not inclusive:
        first = np.full_like(np.take(out, [0], axis), identity)
        out = np.concatenate([first, np.take(out, np.arange(out.shape[axis] - 1), axis)], axis)
    return np.flip(out, axis) if reverse else out


def add_running(cases):
    def lowest(dtype, sign):
        if dtype in FLOATS:
            return -INF * sign
        if dtype == "bool":
            return sign < 0
        info = np.iinfo(np_dtype(dtype))
        return info.min if sign > 0 else info.max

    def logcumsumexp(x, axis):
        return np.logaddexp.accumulate(x, axis)

    table = {
        "cumsum": (lambda x, axis: np.cumsum(x, axis, dtype=x.dtype), lambda d: 0, ALL, "summed"),
        "cumprod": (lambda x, axis: np.cumprod(x, axis, dtype=x.dtype), lambda d: 1, ALL, "multiplied"),
        "cummax": (np.maximum.accumulate, lambda d: lowest(d, 1), REAL, "exact"),
        "cummin": (np.minimum.accumulate, lambda d: lowest(d, -1), REAL, "exact"),
        "logcumsumexp": (logcumsumexp, lambda d: -INF, FLOATS, "summed"),
    }
    for name, (function, identity, dtypes, tolerance) in table.items():

        def add_one(label, values, axis, reverse, inclusive):
            dtype = name_of(values)
            out = "s32" if dtype == "bool" and name == "cumsum" else dtype

            def compute(x):
                x = x.astype(np_dtype(out)) if x.dtype.kind in "bui" else x
                return running(function, x, axis, reverse, inclusive, identity(dtype))

            cases.like_mlx(
                label,
                op(name, axis=axis, reverse=reverse, inclusive=inclusive),
                [values],
                compute,
                lambda x: getattr(mx, name)(x, axis=axis, reverse=reverse, inclusive=inclusive),
                tolerance,
            )

        for dtype in dtypes:
            low, high = (0.5, 1.5) if name == "cumprod" else (-2, 2)
            add_one(f"{dtype} axis 1", noise((2, 5, 2), dtype, low, high), 1, False, True)
            add_one(f"{dtype} exclusive", noise((2, 4), dtype, low, high), -1, False, False)
        for axis in (0, 1, -1):
            for reverse in (False, True):
                for inclusive in (False, True):
                    values = noise((3, 2, 4), "f32", 0.5, 1.5)
                    add_one(f"f32 axis {axis} {reverse} {inclusive}", values, axis, reverse, inclusive)
        if name in ("cumsum", "logcumsumexp"):
            for dtype in HALF:
                add_one(f"{dtype} many", noise((2, 300), dtype, 0.5, 1.5), 1, False, True)
        add_one("f32 4-D", noise((2, 1, 3, 2), "f32"), 2, True, True)
        add_one("f32 one", noise((3, 1), "f32"), 1, False, True)
        special = arr([[1, NAN, 2, 3], [1, INF, 2, -INF], [-INF, -INF, 1, 2]], "f32")
        add_one("f32 special", special, 1, False, True)
        for shape, axis in (((0, 2), 0), ((0, 2), 1), ((2, 0), 1), ((2, 0), 0), ((0,), 0)):
            values = noise(shape, "f32")
            operation = op(name, axis=axis, reverse=False, inclusive=True)
            cases.add(f"f32 empty {list(shape)} axis {axis}", operation, [values], values)


def add(cases):
    add_table(cases)
    add_special(cases)
    add_spread(cases)
    add_softmax(cases)
    add_arg(cases)
    add_running(cases)
