"""Sorting and searching. Partitions are not unique: their cases are compared in a form that is (see `form`)."""

import mlx.core as mx
import numpy as np

from .common import *


def sample(dtype, shape=(3, 7)):
    return noise(shape, dtype, -1.5, 1.5)


def add_sort(cases):
    for dtype in REAL:
        values = sample(dtype)
        cases.like_mlx(dtype, op("sort", axis=-1), [values], lambda x: np.sort(x, -1), lambda x: mx.sort(x, -1))
        wanted = arr(np.argsort(wide(values), -1, kind="stable"), "u32")
        cases.add(dtype, op("argsort", axis=-1), [values], wanted, mlx=lambda x: mx.argsort(x, -1))
    for axis in (0, 1, 2, -3, -1):
        values = noise((2, 5, 3), "f32")
        cases.like_mlx(f"f32 axis {axis}", op("sort", axis=axis), [values], lambda x: np.sort(x, axis), lambda x: mx.sort(x, axis))
        wanted = arr(np.argsort(values, axis, kind="stable"), "u32")
        cases.add(f"f32 axis {axis}", op("argsort", axis=axis), [values], wanted, mlx=lambda x: mx.argsort(x, axis))
    for dtype in FLOATS:
        values = arr([3, NAN, -INF, 2, INF, -0.0, NAN, -1], dtype)
        cases.like_mlx(f"{dtype} nan last", op("sort", axis=0), [values], np.sort, lambda x: mx.sort(x, 0))
        cases.add(f"{dtype} nan last", op("argsort", axis=0), [values], arr(np.argsort(wide(values), kind="stable"), "u32"))
    for dtype in INTS:
        values = extremes(dtype)
        cases.like_mlx(f"{dtype} extremes", op("sort", axis=0), [values], np.sort, lambda x: mx.sort(x, 0))
    # Few values in many places: only a stable order is this one.
    values = arr(noise((2, 600), "s32", -1, 1), "s32")
    cases.add("s32 stable", op("argsort", axis=1), [values], arr(np.argsort(values, 1, kind="stable"), "u32"))
    values = noise((600, 2), "f32", -1, 1).round(1)
    cases.add("f32 stable columns", op("argsort", axis=0), [values], arr(np.argsort(values, 0, kind="stable"), "u32"))
    for shape in ((0,), (2, 0), (0, 2), (1,), (2, 1)):
        values = noise(shape, "f32")
        cases.add(f"f32 {list(shape)}", op("sort", axis=-1), [values], values)
        cases.add(f"f32 {list(shape)}", op("argsort", axis=-1), [values], np.zeros(shape, np.uint32))


def add_partition(cases):
    """`outputs` is the whole axis sorted; the reader sorts what lies before and after the k-th."""

    def both(label, values, kth, axis):
        place = kth % values.shape[axis]
        form = (Atom("partition"), place, axis % values.ndim)
        wanted = np.sort(wide(values), axis)
        cases.add(label, op("partition", kth=kth, axis=axis), [values], arr(wanted, name_of(values)), form=form)
        form = (Atom("argpartition"), place, axis % values.ndim)
        cases.add(label, op("argpartition", kth=kth, axis=axis), [values], arr(wanted, name_of(values)), form=form)

    for dtype in REAL:
        both(dtype, sample(dtype, (2, 9)), 4, -1)
    for axis in (0, 1, 2, -2):
        for kth in (0, 2, -1):
            both(f"f32 axis {axis} kth {kth}", noise((4, 5, 3), "f32"), kth, axis)
    both("f32 infinities", arr([3, INF, -INF, 2, INF, -1], "f32"), 3, 0)
    both("s32 equal", arr([5, 5, 5, 5], "s32"), 1, 0)


def add_topk(cases):
    """`outputs` is the k largest in order."""
    for dtype in REAL:
        values = sample(dtype, (2, 9))
        wanted = arr(np.sort(wide(values), -1)[:, -3:], dtype)
        cases.add(dtype, op("topk", k=3, axis=-1), [values], wanted, form=(Atom("sorted"), 1))
    for axis in (0, 1, -1):
        for k in (1, 2, 3):
            values = noise((3, 4, 3), "f32")
            place = axis % 3
            ordered = np.sort(values, place)
            wanted = np.take(ordered, np.arange(ordered.shape[place] - k, ordered.shape[place]), place)
            cases.add(f"f32 axis {axis} k {k}", op("topk", k=k, axis=axis), [values], wanted, form=(Atom("sorted"), place))


def add_top_k(cases):
    """The k largest in order, NaN first and the first of equals first, and their places."""

    def largest(label, values, k, axis):
        # A stable sort of what is negated would not do: there is no -min of integers.
        turned = np.flip(wide(values), axis)
        upwards = np.argsort(turned, axis, kind="stable")
        places = values.shape[axis] - 1 - np.take(np.flip(upwards, axis), np.arange(k), axis)
        wanted = [arr(np.take_along_axis(values, places, axis), name_of(values)), arr(places, "u32")]
        cases.add(label, op("top_k", k=k, axis=axis), [values], wanted)

    for dtype in REAL:
        largest(dtype, sample(dtype, (2, 9)), 4, -1)
    for axis in (0, 1, -1):
        for k in (0, 1, 3):
            largest(f"f32 axis {axis} k {k}", noise((3, 4, 3), "f32"), k, axis)
    for dtype in FLOATS:
        largest(f"{dtype} nan first", arr([3, NAN, -INF, 2, INF, -0.0, 0.0, NAN, -1], dtype), 9, 0)
    for dtype in INTS:
        largest(f"{dtype} extremes", extremes(dtype), 2, 0)
    # Few values in many places: only the first of equals are these.
    largest("s32 equal", arr(noise((2, 600), "s32", -1, 1), "s32"), 250, 1)
    largest("f32 long", noise((1, 4_000), "f32").round(2), 50, 1)
    largest("f32 [0, 3]", noise((0, 3), "f32"), 2, -1)


def add_searchsorted(cases):
    for side in ("left", "right"):
        operation = op("searchsorted", side=Atom(side))
        for dtype in INTS + FLOATS:
            line = np.sort(sample(dtype, (12,)))
            values = np.concatenate([sample(dtype, (6,)), line[:3]]).reshape(3, 3)
            wanted = np.searchsorted(wide(line), wide(values), side)
            cases.add(f"{dtype} {side}", operation, [line, values], arr(wanted, "u32"), mlx=lambda a, v: mx.searchsorted(a, v, side=side))
        line = arr([1, 2, 2, 2, 4], "f32")
        for label, values in (("equal", arr(2.0, "f32")), ("outside", arr([-INF, 0, 5, INF], "f32")), ("none", arr([], "f32", (0, 2)))):
            wanted = arr(np.searchsorted(line, values, side), "u32")
            cases.add(f"f32 {side} {label}", operation, [line, values], wanted, mlx=lambda a, v: mx.searchsorted(a, v, side=side))
        values = arr([1.0, 2.0], "f32")
        cases.add(f"f32 {side} in none", operation, [arr([], "f32"), values], np.zeros((2,), np.uint32))


def add(cases):
    add_sort(cases)
    add_partition(cases)
    add_topk(cases)
    add_top_k(cases)
    add_searchsorted(cases)
