"""Operations that move elements about, whatever their type."""

import itertools

import mlx.core as mx
import numpy as np

from .common import *

# Types take turns, so that each size of element meets each operation.
TURNS = ["f32", "u8", "bf16", "c64", "s64", "bool", "f16", "s16"]


class Turn:
    def __init__(self, cases):
        self.cases = cases
        self.types = itertools.cycle(TURNS)

    def __call__(self, operation, label, shape, compute, mlx=None, types=2):
        for _ in range(types):
            dtype = next(self.types)
            values = noise(shape, dtype)
            wanted = compute(values)
            wanted = wanted if isinstance(wanted, list) else np.asarray(wanted)
            self.cases.add(f"{dtype} {label}", operation, [values], wanted, "bits", mlx=mlx)


def add_shape(turn):
    for shape, target in (((2, 3, 4), [6, 4]), ((2, 3, 4), [-1]), ((24,), [2, -1, 3]), ((), [1, 1]), ((1,), []), ((0, 3), [3, 0, 2]), ((2, 0), [0, 5])):
        turn(op("reshape", shape=target), f"{list(shape)} to {target}", shape, lambda x: x.reshape(target), lambda x: mx.reshape(x, target))
    for shape, start, end in (((2, 3, 4), 0, -1), ((2, 3, 4), 1, 2), ((2, 3, 4), -2, -1), ((2, 3, 1, 2), 0, 2), ((), 0, -1), ((0, 2), 0, 1), ((5,), 0, 0)):
        turn(op("flatten", start_axis=start, end_axis=end), f"{list(shape)} {start} {end}", shape, lambda x: np.asarray(run_mx(lambda a: mx.flatten(a, start, end), [x])[0]))
    for shape, axis, target in (((6, 4), 0, [2, 3]), ((2, 12), -1, [3, -1]), ((4, 1), 1, [1, 1]), ((0, 2), 0, [0, 3])):
        place = axis % len(shape)
        full = lambda x: x.reshape(x.shape[:place] + (tuple(target) if -1 not in target else (3, 4)) + x.shape[place + 1 :])
        turn(op("unflatten", axis=axis, shape=target), f"{list(shape)} {axis} {target}", shape, full, lambda x: mx.unflatten(x, axis, target))
    for shape, axes in (((1, 3, 1), [0]), ((1, 3, 1), [0, 2]), ((1, 3, 1), [-1]), ((1, 1), [0, 1]), ((2, 1, 0), [1])):
        turn(op("squeeze", axes=axes), f"{list(shape)} {axes}", shape, lambda x: np.squeeze(x, tuple(axes)), lambda x: mx.squeeze(x, axes))
    for shape, axes in (((3,), [0]), ((3,), [-1]), ((2, 3), [0, 2]), ((2, 3), [1, -1]), ((), [0]), ((0, 2), [1])):
        turn(op("expand_dims", axes=axes), f"{list(shape)} {axes}", shape, lambda x: np.expand_dims(x, tuple(axes)), lambda x: mx.expand_dims(x, axes))
    for shape, axes in (((2, 3), [1, 0]), ((2, 3, 4), [2, 0, 1]), ((2, 3, 4), [0, 2, 1]), ((2, 3, 1, 2), [3, 1, 0, 2]), ((3,), [0]), ((), []), ((2, 3, 4), [-1, 0, 1]), ((2, 0), [1, 0])):
        turn(op("transpose", axes=axes), f"{list(shape)} {axes}", shape, lambda x: np.transpose(x, axes), lambda x: mx.transpose(x, axes))
    for a, b in ((0, 1), (0, 2), (-1, 0), (1, 1)):
        turn(op("swapaxes", axis1=a, axis2=b), f"{a} {b}", (2, 3, 4), lambda x: np.swapaxes(x, a, b), lambda x: mx.swapaxes(x, a, b))
        turn(op("moveaxis", source=a, destination=b), f"{a} {b}", (2, 3, 4), lambda x: np.moveaxis(x, a, b), lambda x: mx.moveaxis(x, a, b))
    for shape, target in (((), [2, 3]), ((3,), [2, 3]), ((2, 1), [2, 4]), ((1, 3, 1), [2, 3, 4]), ((2, 1, 3, 1), [2, 4, 3, 2]), ((1,), [0]), ((2, 3), [2, 3])):
        turn(op("broadcast_to", shape=target), f"{list(shape)} to {target}", shape, lambda x: np.broadcast_to(x, target), lambda x: mx.broadcast_to(x, target))
    for shape in ((2, 3, 4), (), (0, 2)):
        turn(op("contiguous"), f"{list(shape)}", shape, lambda x: x, mx.contiguous)


def add_joins(cases, turn):
    for axis, shapes in ((0, [(2, 3), (1, 3)]), (1, [(2, 3), (2, 1), (2, 2)]), (-1, [(2, 1, 3), (2, 1, 1)]), (0, [(0, 2), (3, 2)]), (0, [(4,)]), (0, [(0,), (0,)])):
        for _ in range(2):
            dtype = next(turn.types)
            parts = [noise(shape, dtype, key=i) for i, shape in enumerate(shapes)]
            cases.add(f"{dtype} axis {axis} {[list(s) for s in shapes]}", op("concatenate", axis=axis), parts, np.concatenate(parts, axis), "bits", mlx=lambda *a: mx.concatenate(a, axis))
    many = [noise((2, 2), "f32", key=i) for i in range(9)]
    cases.add("f32 nine", op("concatenate", axis=1), many, np.concatenate(many, 1), "bits")
    mixed = [arr([1, 2], "s32"), arr([0.5], "f32"), arr([True], "bool")]
    cases.add("s32, f32 and bool", op("concatenate", axis=0), mixed, arr([1, 2, 0.5, 1], "f32"), mlx=lambda *a: mx.concatenate(a, 0))
    for axis, shape, count in ((0, (2, 3), 2), (1, (2, 3), 3), (-1, (2, 3), 2), (0, (), 3), (1, (0,), 2), (2, (2, 1, 2), 1)):
        for _ in range(2):
            dtype = next(turn.types)
            parts = [noise(shape, dtype, key=i) for i in range(count)]
            cases.add(f"{dtype} axis {axis} {count} of {list(shape)}", op("stack", axis=axis), parts, np.stack(parts, axis), "bits", mlx=lambda *a: mx.stack(a, axis))
    mixed = [arr([1, 2], "u8"), arr([-1, 3], "s8")]
    cases.add("u8 and s8", op("stack", axis=0), mixed, arr([[1, 2], [-1, 3]], "s16"), mlx=lambda *a: mx.stack(a, 0))
    for axis, indices, shape in ((0, [1], (3, 2)), (1, [1, 3], (2, 5)), (-1, [2, 2], (2, 3, 4)), (0, [0, 4], (4,)), (0, [], (3,)), (1, [0], (2, 0))):
        turn(op("split", indices=indices, axis=axis), f"{list(shape)} axis {axis} at {indices}", shape, lambda x: [np.ascontiguousarray(p) for p in np.split(x, indices, axis)])


def add_copies(turn):
    for shape, repeats, axis in (((3,), 2, 0), ((2, 3), 3, 1), ((2, 3), 1, -1), ((2, 1, 2), 2, -2), ((2,), 0, 0), ((0, 2), 2, 1)):
        turn(op("repeat", repeats=repeats, axis=axis), f"{list(shape)} {repeats} axis {axis}", shape, lambda x: np.repeat(x, repeats, axis), lambda x: mx.repeat(x, repeats, axis))
    for shape, times in (((3,), [2]), ((2, 3), [1, 2]), ((2, 3), [2, 1, 2]), ((2, 3), [2]), ((), [3]), ((2,), [0]), ((0,), [2])):
        turn(op("tile", repetitions=times), f"{list(shape)} {times}", shape, lambda x: np.tile(x, times), lambda x: mx.tile(x, times))
    for shape, axes in (((5,), [0]), ((2, 3), [1]), ((2, 3), [0, 1]), ((2, 3, 4), [-1, 0]), ((2, 3, 1, 2), [1, 3]), ((0, 2), [0]), ((2, 3), [])):
        turn(op("flip", axes=axes), f"{list(shape)} {axes}", shape, lambda x: np.flip(x, tuple(axes)))
    for shape, shift, axes in (((5,), [2], [0]), ((5,), [-1], [0]), ((5,), [12], [0]), ((2, 3), [1, 2], [0, 1]), ((2, 3), [1], [-1]), ((2, 3, 4), [-5, 1], [2, 0]), ((0, 2), [1], [0]), ((4,), [0], [0])):
        turn(op("roll", shift=shift, axes=axes), f"{list(shape)} by {shift} axes {axes}", shape, lambda x: np.roll(x, shift, axes), lambda x: mx.roll(x, shift, axes))


def crop(x, low, high):
    """Negative widths cut off."""
    index = tuple(slice(max(-l, 0), n - max(-h, 0)) for l, h, n in zip(low, high, x.shape))
    return x[index]


def add_pads(cases, turn):
    for shape, axes, low, high in (
        ((3,), [0], [1], [2]), ((2, 3), [0, 1], [1, 0], [0, 2]), ((2, 3), [-1], [2], [1]), ((2, 3, 4), [1, 2], [1, -1], [0, -2]),
        ((5,), [0], [-2], [-1]), ((5,), [0], [-1], [3]), ((2, 2), [], [], []), ((0, 2), [0], [1], [1]), ((2, 3), [0, 1], [-2, 0], [0, 0]),
    ):  # fmt: skip
        for mode in ("constant", "edge"):
            if mode == "edge" and (0 in shape or -2 in low):
                continue
            for _ in range(2):
                dtype = next(turn.types)
                values, value = noise(shape, dtype), arr(1, dtype)
                whole_low, whole_high = [0] * len(shape), [0] * len(shape)
                for axis, l, h in zip(axes, low, high):
                    whole_low[axis], whole_high[axis] = l, h
                kept = crop(values, whole_low, whole_high)
                widths = [(max(l, 0), max(h, 0)) for l, h in zip(whole_low, whole_high)]
                more = dict(constant_values=value) if mode == "constant" else {}
                wanted = np.pad(kept, widths, mode, **more)
                operation = op("pad", axes=axes, low=low, high=high, mode=Atom(mode))
                cases.add(f"{dtype} {list(shape)} axes {axes} {low} {high} {mode}", operation, [values, value], wanted, "bits")
    cases.add("f32 by an integer", op("pad", axes=[0], low=[1], high=[0], mode=Atom("constant")), [arr([1.5], "f32"), arr(3, "s32")], arr([3.0, 1.5], "f32"))

    def interior(x, value, low, high, between):
        shape = [n + max(n - 1, 0) * b for n, b in zip(x.shape, between)]
        out = np.full(shape, value, x.dtype)
        out[tuple(slice(None, None, b + 1) for b in between)] = x
        out = crop(out, low, high)
        return out if x.ndim == 0 else np.pad(out, [(max(l, 0), max(h, 0)) for l, h in zip(low, high)], constant_values=value)

    for shape, low, high, between in (
        ((3,), [0], [0], [1]), ((3,), [1], [2], [2]), ((2, 3), [1, 0], [0, 1], [0, 2]), ((2, 3), [-1, 1], [0, -2], [1, 1]), ((4,), [-2], [-3], [2]),
        ((2, 2), [0, 0], [0, 0], [0, 0]), ((1,), [0], [0], [3]), ((0, 2), [1, 0], [0, 0], [1, 1]), ((2, 1, 3), [0, 1, 0], [1, 0, -1], [1, 2, 0]), ((), [], [], []),
    ):  # fmt: skip
        for _ in range(2):
            dtype = next(turn.types)
            values, value = noise(shape, dtype), arr(1, dtype)
            operation = op("pad_interior", low=low, high=high, interior=between)
            cases.add(f"{dtype} {list(shape)} {low} {high} {between}", operation, [values, value], interior(values, value, low, high, between), "bits")


def add_views(cases, turn):
    for shape, target, strides, offset in (
        ((6,), [3, 2], [2, 1], 0), ((6,), [2, 2], [1, 1], 3), ((2, 3), [3, 2], [1, 3], 0), ((6,), [4], [0], 2), ((5,), [5], [-1], 4),
        ((8,), [2, 3, 2], [3, 1, 1], 1), ((3,), [], [], 2), ((3,), [0, 2], [1, 1], 0),
    ):  # fmt: skip

        def compute(x):
            flat = np.ravel(x)
            size = flat.itemsize
            view = np.lib.stride_tricks.as_strided(flat[offset:], target, [s * size for s in strides])
            return np.array(view)

        turn(op("as_strided", shape=target, strides=strides, offset=offset), f"{list(shape)} as {target} {strides} {offset}", shape, compute)


def add_diagonals(cases, turn):
    for k in (0, 1, -1, 3):
        turn(op("diag", k=k), f"vector {k}", (3,), lambda x: np.diag(x, k), lambda x: mx.diag(x, k))
        turn(op("diag", k=k), f"matrix {k}", (4, 3), lambda x: np.diag(x, k), lambda x: mx.diag(x, k))
        turn(op("tril", k=k), f"{k}", (2, 4, 3), lambda x: np.tril(x, k), lambda x: mx.tril(x, k))
        turn(op("triu", k=k), f"{k}", (2, 3, 4), lambda x: np.triu(x, k), lambda x: mx.triu(x, k))
    for offset, a, b in ((0, 0, 1), (1, 0, 1), (-1, 1, 2), (0, -1, 0), (5, 0, 1)):
        turn(op("diagonal", offset=offset, axis1=a, axis2=b), f"{offset} {a} {b}", (3, 4, 2), lambda x: np.diagonal(x, offset, a, b), lambda x: mx.diagonal(x, offset, a, b))
    for dtype in ALL:
        values = noise((3, 3), dtype)
        out = name_of(run_mx(mx.trace, [values])[0])
        cases.add(dtype, op("trace", offset=0, axis1=0, axis2=1), [values], arr(np.trace(wide(values), dtype=np_dtype(out) if dtype in INTS + ["bool"] else None), out), "summed", mlx=mx.trace)
    for offset, a, b in ((1, 0, 1), (-1, 1, 2), (0, -1, 0)):
        values = noise((3, 4, 2), "f32")
        cases.like_mlx(f"f32 {offset} {a} {b}", op("trace", offset=offset, axis1=a, axis2=b), [values], lambda x: np.trace(x, offset, a, b), lambda x: mx.trace(x, offset, a, b), "summed")
    # MLX sums an empty diagonal with sizes it has not set: it may give zeros or not end.
    values = noise((3, 4, 2), "f32")
    cases.add("f32 outside", op("trace", offset=9, axis1=0, axis2=1), [values], np.zeros((2,), np.float32))


def add(cases):
    turn = Turn(cases)
    add_shape(turn)
    add_joins(cases, turn)
    add_copies(turn)
    add_pads(cases, turn)
    add_views(cases, turn)
    add_diagonals(cases, turn)
