"""Reading and writing parts of an array: slices, and elements by index."""

import itertools

import mlx.core as mx
import numpy as np

from .common import *
from .shapes import TURNS

SLICES = [
    ((5,), [1], [4], [1]),
    ((10,), [0], [10], [3]),
    ((10,), [9], [-11], [-1]),
    ((10,), [8], [1], [-3]),
    ((4, 5), [0, 1], [4, 5], [2, 3]),
    ((4, 5), [3, 0], [-5, 5], [-2, 2]),
    ((4, 5), [-3, -4], [-1, -1], [1, 1]),
    ((4, 5), [1, 2], [2, 3], [1, 1]),
    ((2, 3, 4), [0, 2, 3], [2, -4, 0], [1, -1, -2]),
    ((2, 3, 1, 2), [0, 0, 0, 1], [2, 3, 1, 2], [1, 2, 1, 1]),
    ((4,), [2], [2], [1]),
    ((4,), [1], [100], [2]),
    ((0, 3), [0, 1], [0, 3], [1, 1]),
    ((), [], [], []),
]


def region(shape, start, stop, strides):
    """As Python slices, where a negative bound counts from the end once and is then what is left of it."""
    out = []
    for n, first, last, step in zip(shape, start, stop, strides):
        first = first + n if first < 0 else first
        last = last + n if last < 0 else last
        if step < 0:
            first, last = min(first, n - 1), max(last, -1)
            out.append(np.arange(first, last, step, dtype=int))
        else:
            first, last = min(max(first, 0), n), min(max(last, 0), n)
            out.append(np.arange(first, last, step, dtype=int))
    return np.ix_(*out) if out else ()


def add_slices(cases):
    types = itertools.cycle(TURNS)
    combine = {
        "slice_update": None,
        "slice_update_add": np.add,
        "slice_update_max": np.maximum,
        "slice_update_min": np.minimum,
        "slice_update_prod": np.multiply,
    }
    for shape, start, stop, strides in SLICES:
        where = region(shape, start, stop, strides)
        attributes = dict(start=start, stop=stop, strides=strides)
        label = f"{list(shape)} {start} to {stop} by {strides}"
        for _ in range(2):
            dtype = next(types)
            values = noise(shape, dtype)
            cases.add(f"{dtype} {label}", op("slice", **attributes), [values], np.array(values[where]), "bits")
        for name, function in combine.items():
            for dtype in ("f32", next(types)):
                if dtype in ("bool", "c64") and function is not None:
                    continue
                values = noise(shape, dtype)
                update = noise(np.shape(values[where]), dtype, key=1)
                wanted = values.copy()
                wanted[where] = update if function is None else function(wide(values)[where], wide(update))
                full = f"{name}/{dtype} {label}"
                if full not in cases.names:
                    cases.add(f"{dtype} {label}", op(name, **attributes), [values, update], wanted, "rounded" if function in (np.add, np.multiply) else "bits")
    for name, function in combine.items():
        values, update = noise((4, 3), "f32"), arr([[2.0], [-1.0]], "f32")
        wanted = values.copy()
        part = values[1:3]
        wanted[1:3] = np.broadcast_to(update, (2, 3)) if function is None else function(part, update)
        cases.add("f32 broadcast", op(name, start=[1, 0], stop=[3, 3], strides=[1, 1]), [values, update], wanted, "rounded")
    for dtype in SIGNED + UNSIGNED + ["f16", "bf16", "f64"]:
        values, update = noise((6,), dtype, 0, 2), noise((3,), dtype, 0, 2, 1)
        for name, function in combine.items():
            wanted = values.copy()
            wanted[::2] = update if function is None else arr(function(wide(values)[::2], wide(update)), dtype)
            cases.add(f"{dtype} every other", op(name, start=[0], stop=[6], strides=[2]), [values, update], wanted, "rounded")
    for name in ("slice_update_max", "slice_update_min"):
        values, update = arr([1.0, NAN, 3.0], "f32"), arr([NAN, 2.0, 5.0], "f32")
        function = combine[name]
        cases.add("f32 nan", op(name, start=[0], stop=[3], strides=[1]), [values, update], function(values, update))


def add_dynamic(cases):
    types = itertools.cycle(TURNS)
    for shape, axes, sizes, start in (
        ((6,), [0], [2], [3]), ((6,), [0], [2], [5]), ((6,), [0], [2], [-4]), ((6,), [0], [6], [2]), ((4, 5), [0, 1], [2, 3], [1, 1]),
        ((4, 5), [0, 1], [2, 3], [9, -9]), ((4, 5), [1], [2], [4]), ((4, 5), [-1], [1], [2]), ((2, 3, 4), [2, 0], [2, 1], [3, 0]),
        ((2, 3, 1, 2), [1, 3], [2, 1], [1, 1]), ((4, 5), [0], [0], [2]),
    ):  # fmt: skip
        for kind in ("s32", "s64", "u32", "u8"):
            if kind[0] == "u" and min(start) < 0:
                continue
            dtype = next(types)
            values = noise(shape, dtype)
            index = [slice(None)] * len(shape)
            for axis, size, first in zip(axes, sizes, start):
                first = min(max(first, 0), shape[axis] - size)
                index[axis] = slice(first, first + size)
            index = tuple(index)
            where = arr(start, kind)
            label = f"{dtype} {list(shape)} axes {axes} sizes {sizes} at {kind} {start}"
            cases.add(label, op("slice_dynamic", axes=axes, sizes=sizes), [values, where], values[index], "bits")
            update = noise(values[index].shape, dtype, key=1)
            wanted = values.copy()
            wanted[index] = update
            cases.add(label, op("slice_update_dynamic", axes=axes), [values, update, where], wanted, "bits")
    far = arr([2**40, -(2**40)], "s64")
    values = noise((3, 4), "f32")
    cases.add("f32 far starts", op("slice_dynamic", axes=[0, 1], sizes=[1, 2]), [values, far], values[2:3, 0:2])
    far = arr([2**63 + 5], "u64")
    cases.add("f32 beyond signed", op("slice_dynamic", axes=[1], sizes=[2]), [values, far], values[:, 2:4])


def near(indices, n):
    """Negative ones count from the end; what is still outside is clamped."""
    indices = np.asarray(indices, np.int64)
    return np.clip(np.where(indices < 0, indices + n, indices), 0, n - 1)


def add_take(cases):
    types = itertools.cycle(TURNS)
    for shape, axis, picks in (
        ((5,), 0, [0, 4, 2]), ((5,), 0, [-1, -5, -2]), ((5,), 0, [5, 100, -6, -100]), ((4, 3), 0, [[1, 0], [3, 3]]), ((4, 3), 1, [2]),
        ((4, 3), -1, 1), ((2, 3, 4), 1, [[2], [-1], [7]]), ((2, 3, 1, 2), 3, [1, 0, 1]), ((3, 2), 0, []), ((1,), 0, [0, 9, -9]),
    ):  # fmt: skip
        for kind in ("s32", "s64", "u32", "u8", "s8"):
            flat = np.ravel(picks)
            if kind[0] == "u" and flat.size and flat.min() < 0:
                continue
            dtype = next(types)
            values = noise(shape, dtype)
            indices = np.asarray(picks, np_dtype(kind))
            wanted = np.take(values, near(picks, shape[axis]), axis)
            label = f"{dtype} {list(shape)} axis {axis} {kind} {picks}"
            cases.add(label, op("take", axis=axis), [values, indices], wanted, "bits")
    values = noise((4,), "f32")
    cases.add("f32 far", op("take", axis=0), [values, arr([2**40, -(2**40)], "s64")], values[[3, 0]])
    cases.add("f32 beyond signed", op("take", axis=0), [values, arr([2**63 + 1, 2**32], "u64")], values[[3, 3]])

    for shape, axis, picks in (
        ((3, 4), 1, [[0, 3], [-1, 2], [1, 1]]), ((3, 4), 0, [[2, 0, 1, -3]]), ((3, 4), -1, [[9, -9], [4, -5], [0, 1]]), ((5,), 0, [4, 0, 0]),
        ((2, 2, 3), 1, [[[0, 1, 0]], [[1, 1, -1]]]), ((2, 3), 1, [[0], [2]]),
    ):  # fmt: skip
        for kind in ("s32", "s64"):
            dtype = next(types)
            values = noise(shape, dtype)
            indices = arr(picks, kind)
            wanted = np.take_along_axis(values, near(picks, shape[axis]), axis)
            cases.add(f"{dtype} {list(shape)} axis {axis} {kind} {picks}", op("take_along_axis", axis=axis), [values, indices], wanted, "bits")
    for shape, axis, picks in (((3, 4), 1, [[0, 3], [-1, 2], [1, 0]]), ((3, 4), 0, [[2, 0, 1, -3]]), ((5,), -1, [4, 0]), ((2, 2, 3), 1, [[[0, 1, 0]], [[1, 1, -1]]])):
        for _ in range(2):
            dtype = next(types)
            values, indices = noise(shape, dtype), arr(picks, "s32")
            update = noise(indices.shape, dtype, key=1)
            wanted = values.copy()
            np.put_along_axis(wanted, near(picks, shape[axis]), update, axis)
            cases.add(f"{dtype} {list(shape)} axis {axis} {picks}", op("put_along_axis", axis=axis), [values, indices, update], wanted, "bits")
    values, indices = noise((3, 4), "f32"), arr([[1], [0], [3]], "u32")
    wanted = values.copy()
    np.put_along_axis(wanted, indices.astype(int), 2.5, 1)
    cases.add("f32 one value", op("put_along_axis", axis=1), [values, indices, arr(2.5, "f32")], wanted)
    for dtype in ("f32", "s32", "u8", "f16", "bf16", "f64", "s64"):
        for axis, picks in ((1, [[0, 3, 0], [-1, 2, 2], [1, 1, 1]]), (0, [[2, 0, 1, -3], [2, 1, 1, 0]])):
            values, indices = noise((3, 4), dtype, 0, 2), arr(picks, "s32")
            update = noise(indices.shape, dtype, 0, 2, 1)
            wanted = wide(values).copy()
            places = list(np.ix_(*[np.arange(n) for n in indices.shape]))
            places[axis] = near(picks, 4 if axis == 1 else 3)
            np.add.at(wanted, tuple(np.broadcast_arrays(*places)), wide(update))
            cases.add(f"{dtype} axis {axis}", op("scatter_add_axis", axis=axis), [values, indices, update], arr(wanted, dtype), "rounded")


def add_gather(cases):
    """`out[i…, j…] = a[clamped start of axes + j]`, with j over `slice_sizes`."""
    types = itertools.cycle(TURNS)

    def gather(values, indices, axes, sizes):
        indices = np.broadcast_arrays(*indices) if len(indices) > 1 else indices
        shape = indices[0].shape
        out = np.zeros(shape + tuple(sizes), values.dtype)
        for place in np.ndindex(*shape):
            start = [0] * values.ndim
            for axis, index in zip(axes, indices):
                start[axis] = min(max(int(index[place]), 0), values.shape[axis] - sizes[axis])
            out[place] = values[tuple(slice(s, s + n) for s, n in zip(start, sizes))]
        return out

    for shape, axes, sizes, picks in (
        ((5,), [0], [1], [[0, 4, 2]]), ((5,), [0], [2], [[3, 4, 0]]), ((5,), [0], [2], [[100, -100]]), ((4, 3), [0], [1, 3], [[3, 0, 1]]),
        ((4, 3), [0, 1], [1, 1], [[0, 3, 9], [2, 1, 9]]), ((4, 3), [0, 1], [2, 2], [[[2], [0]], [[0, 1]]]), ((4, 3), [1], [4, 1], [[[2, 0], [1, 1]]]),
        ((4, 3), [-1], [2, 1], [[1]]), ((2, 3, 4), [2, 0], [1, 2, 2], [[3, 1], [1, 0]]), ((4, 3), [0], [1, 2], [0]), ((4, 3), [0], [1, 3], [[]]), ((4, 3), [0], [0, 3], [[1, 2]]),
    ):  # fmt: skip
        for kind in ("s32", "s64", "u32"):
            if kind[0] == "u" and np.size(picks[0]) and min(np.min(p) for p in picks) < 0:
                continue
            dtype = next(types)
            values = noise(shape, dtype)
            indices = [np.asarray(p, np_dtype(kind)) for p in picks]
            label = f"{dtype} {list(shape)} axes {axes} sizes {sizes} {kind} {picks}"
            cases.add(label, op("gather", axes=axes, slice_sizes=sizes), [values, *indices], gather(values, indices, axes, sizes), "bits")


def add_scatter(cases):
    combine = {
        "scatter": lambda old, new: new,
        "scatter_add": lambda old, new: old + new,
        "scatter_max": np.maximum,
        "scatter_min": np.minimum,
        "scatter_prod": lambda old, new: old * new,
    }

    def scatter(name, values, updates, indices, axes):
        """Updates have the shape of the indices, then one axis for each of `a`; one that does not fit is dropped."""
        indices = np.broadcast_arrays(*indices) if len(indices) > 1 else indices
        out = wide(values).copy()
        for place in np.ndindex(*indices[0].shape):
            part = wide(updates)[place]
            start = [0] * values.ndim
            for axis, index in zip(axes, indices):
                start[axis] = int(index[place])
            if any(s < 0 or s + n > size for s, n, size in zip(start, part.shape, values.shape)):
                continue
            where = tuple(slice(s, s + n) for s, n in zip(start, part.shape))
            with np.errstate(all="ignore"):
                out[where] = combine[name](out[where], part)
        return arr(out, name_of(values))

    layouts = [
        ((5,), [0], [[0, 4, 2]], (3, 1)),
        ((5,), [0], [[1, 5, 100]], (3, 1)),
        ((5,), [0], [[-100, 3]], (2, 1)),
        ((4, 3), [0], [[3, 0]], (2, 1, 3)),
        ((4, 3), [0], [[0, 4, 7]], (3, 1, 3)),
        ((4, 3), [0, 1], [[0, 3, 1], [2, 1, 9]], (3, 1, 1)),
        ((4, 3), [-1], [[2, 0]], (2, 4, 1)),
        ((2, 3, 4), [2, 0], [[3, 1], [1, 0]], (2, 1, 3, 1)),
        ((4, 3), [0], [[]], (0, 1, 3)),
    ]
    for name in combine:
        for shape, axes, picks, update in layouts:
            for dtype, kind in (("f32", "s32"), ("s32", "s64")):
                values, updates = noise(shape, dtype), noise(update, dtype, key=1)
                indices = [np.asarray(p, np_dtype(kind)) for p in picks]
                label = f"{dtype} {list(shape)} axes {axes} {kind} {picks}"
                cases.add(label, op(name, axes=axes), [values, updates, *indices], scatter(name, values, updates, indices, axes), "rounded")
        for dtype in ["bf16", "f16", "f64", "u8", "s64"]:
            values, updates = noise((4, 2), dtype, 0, 2), noise((3, 1, 2), dtype, 0, 2, 1)
            indices = [arr([3, 0, 2], "s32")]
            cases.add(f"{dtype} rows", op(name, axes=[0]), [values, updates, *indices], scatter(name, values, updates, indices, [0]), "rounded")
        if name != "scatter":
            # Several updates of one place all count.
            values, updates = noise((3,), "f32"), noise((5, 1), "f32", key=1)
            indices = [arr([1, 1, 0, 1, 0], "s32")]
            cases.add("f32 again", op(name, axes=[0]), [values, updates, *indices], scatter(name, values, updates, indices, [0]), "rounded")
        values, updates = noise((3, 3), "f32"), noise((2, 2, 1, 1), "f32", key=1)
        indices = [arr([[0], [2]], "s32"), arr([[0, 1]], "s32")]
        cases.add("f32 indices broadcast", op(name, axes=[0, 1]), [values, updates, *indices], scatter(name, values, updates, indices, [0, 1]), "rounded")
        values, updates = noise((3,), "f32"), noise((2, 1), "f32", key=1)
        indices = [arr([2**40, 1], "s64")]
        cases.add("f32 far", op(name, axes=[0]), [values, updates, *indices], scatter(name, values, updates, indices, [0]), "rounded")


def assign(a, mask, values):
    a[mask] = values
    return a


def add_choices(cases):
    for dtype in ALL:
        values, mask = noise((3, 4), dtype), noise((3, 4), "bool")
        source = noise((int(mask.sum()),), dtype, key=1)
        wanted = values.copy()
        wanted[mask] = source
        cases.add(dtype, op("masked_scatter"), [values, mask, source], wanted, mlx=assign)
    values = noise((5,), "f32")
    for label, mask in (("none", [False] * 5), ("all", [True] * 5)):
        mask = arr(mask, "bool")
        source = noise((5,), "f32", key=1)
        wanted = values.copy()
        wanted[mask] = source[: mask.sum()]
        cases.add(f"f32 {label}", op("masked_scatter"), [values, mask, source], wanted)
    values, mask = noise((3, 2), "f32"), arr([True, False, True], "bool")
    source = noise((2, 2), "f32", key=1)
    wanted = values.copy()
    wanted[mask] = source
    cases.add("f32 rows", op("masked_scatter"), [values, mask, source], wanted, mlx=assign)

    for dtype in ALL:
        mask = noise((3, 4), "bool")
        pair = [noise((3, 4), dtype), noise((3, 4), dtype, key=1)]
        cases.add(dtype, op("where"), [mask, *pair], np.where(mask, *pair), "bits", mlx=mx.where)
    for condition, left, right in (((), (2, 3), ()), ((2, 1), (3,), (2, 3)), ((2, 3, 1, 2), (1, 3, 4, 1), ()), ((0, 2), (2,), ()), ((3,), (), ())):
        inputs = [noise(condition, "bool"), noise(left, "f32"), noise(right, "f32", key=1)]
        cases.add(f"f32 {list(condition)} {list(left)} {list(right)}", op("where"), inputs, np.where(*inputs), "bits", mlx=mx.where)
    inputs = [arr([2, 0, -1], "s32"), arr([1, 2, 3], "u8"), arr([-0.5, 0.5, 1.5], "f16")]
    cases.add("numbers as a condition", op("where"), inputs, arr([1, 0.5, 3], "f16"), mlx=mx.where)

    for dtype in REAL:
        values = noise((2, 5), dtype)
        low, high = arr(0 if dtype == "bool" else 1, dtype), arr(1 if dtype == "bool" else 3, dtype)
        for label, lower, upper in (("both", low, high), ("low", low, None), ("high", None, high)):
            with np.errstate(all="ignore"):
                wanted = arr(np.clip(wide(values), None if lower is None else wide(lower), None if upper is None else wide(upper)), dtype)
            cases.add(f"{dtype} {label}", op("clip"), [values, lower, upper], wanted, mlx=lambda x, l, h: mx.clip(x, l, h))
    values = arr([NAN, INF, -INF, -0.5, 5.0], "f32")
    cases.add("f32 special", op("clip"), [values, arr(-1.0, "f32"), arr(2.0, "f32")], np.clip(values, -1, 2), mlx=mx.clip)
    inputs = [noise((2, 3), "f32"), noise((3,), "f32", -1, 0), noise((2, 1), "f32", 0, 1)]
    cases.add("f32 broadcast", op("clip"), inputs, np.clip(*inputs), mlx=mx.clip)
    inputs = [arr([1, 5, 9], "s32"), arr(2.5, "f32"), arr(8, "s64")]
    cases.add("s32 by f32 and s64", op("clip"), inputs, arr([2.5, 5, 8], "f32"), mlx=mx.clip)


def add(cases):
    add_slices(cases)
    add_dynamic(cases)
    add_take(cases)
    add_gather(cases)
    add_scatter(cases)
    add_choices(cases)
