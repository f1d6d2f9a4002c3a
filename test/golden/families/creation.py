"""Arrays from attributes alone."""

import mlx.core as mx
import numpy as np

from .common import *


def add_constant(cases):
    def constant(label, value, dtype, wanted):
        cases.add(label, op("constant", value=value, dtype=Atom(dtype)), [], arr(wanted, dtype), "bits")

    for dtype in ALL:
        constant(f"{dtype} 1", 1, dtype, 1)
        constant(f"{dtype} 2.0", 2.0, dtype, 2.0)
        constant(f"{dtype} 0", 0, dtype, 0)
    for dtype in SIGNED + FLOATS + ["c64"]:
        constant(f"{dtype} -5", -5, dtype, -5)
    for dtype in FLOATS:
        constant(f"{dtype} 0.1", 0.1, dtype, 0.1)
        constant(f"{dtype} -0.0", -0.0, dtype, -0.0)
        constant(f"{dtype} nan", Atom("nan"), dtype, NAN)
        constant(f"{dtype} infinity", Atom("infinity"), dtype, INF)
        constant(f"{dtype} neg_infinity", Atom("neg_infinity"), dtype, -INF)
    for dtype in INTS:
        info = np.iinfo(np_dtype(dtype))
        constant(f"{dtype} largest", int(info.max), dtype, info.max)
        constant(f"{dtype} least", int(info.min), dtype, info.min)
        constant(f"{dtype} 3.9", 3.9, dtype, 3)
    constant("f32 exact integer", 16777217, "f32", 16777217.0)
    constant("f64 exact integer", 9007199254740993, "f64", 9007199254740992.0)
    constant("f16 large", 70000, "f16", INF)
    constant("c64 pair", (1.5, -2.5), "c64", 1.5 - 2.5j)
    constant("bool 0.5", 0.5, "bool", True)


def add(cases):
    add_constant(cases)
    shapes = [[], [3], [2, 3], [0, 2], [2, 1, 3, 2]]
    for dtype in ALL:
        kind = Atom(dtype)
        for shape in shapes if dtype == "f32" else shapes[2:3]:
            cases.add(f"{dtype} {shape}", op("zeros", shape=shape, dtype=kind), [], np.zeros(shape, np_dtype(dtype)), "bits")
            cases.add(f"{dtype} {shape}", op("ones", shape=shape, dtype=kind), [], np.ones(shape, np_dtype(dtype)), "bits")
            cases.add(f"{dtype} {shape}", op("full", shape=shape, dtype=kind), [arr(1, dtype)], np.ones(shape, np_dtype(dtype)), "bits")
        cases.add(f"{dtype} from f32", op("full", shape=[2], dtype=kind), [arr(3.0, "f32")], arr([3, 3], dtype))
        cases.add(f"{dtype} 3 4 1", op("eye", n=3, m=4, k=1, dtype=kind), [], np.eye(3, 4, 1, np_dtype(dtype)), "bits")
        cases.add(f"{dtype} 3 4 1", op("tri", n=3, m=4, k=1, dtype=kind), [], np.tri(3, 4, 1, np_dtype(dtype)), "bits")
        for shape, axis in (([2, 3], None), ([2, 3], 0), ([2, 3], 1), ([2, 3, 2], -2), ([4], 0), ([], None), ([0, 2], 1), ([1], None)):
            size = int(np.prod(shape))
            if axis is None:
                wanted = np.arange(size).reshape(shape)
            else:
                line = [1] * len(shape)
                line[axis] = shape[axis]
                wanted = np.broadcast_to(np.arange(shape[axis]).reshape(line), shape)
            if dtype in ("f32", "s64") or axis in (None, 1):
                cases.add(f"{dtype} {shape} axis {axis}", op("iota", shape=shape, axis=axis, dtype=kind), [], arr(wanted, dtype))
    cases.add("f32 row", op("full", shape=[2, 3], dtype=Atom("f32")), [arr([1, 2, 3], "f32")], arr([[1, 2, 3], [1, 2, 3]], "f32"))
    for n, m, k in ((3, 3, 0), (2, 4, -1), (4, 2, -3), (3, 3, 9), (0, 2, 0), (1, 1, 0)):
        cases.add(f"f32 {n} {m} {k}", op("eye", n=n, m=m, k=k, dtype=Atom("f32")), [], np.eye(n, m, k, np.float32))
        cases.add(f"f32 {n} {m} {k}", op("tri", n=n, m=m, k=k, dtype=Atom("f32")), [], np.tri(n, m, k, np.float32))
    large = 20_000_000
    cases.add("s64 large", op("arange", start=float(large), stop=float(large + 3), step=1.0, dtype=Atom("s64")), [], arr([large, large + 1, large + 2], "s64"))
    for dtype in INTS + FLOATS:
        spans = [(0.0, 5.0, 1.0), (1.0, 10.0, 3.0), (3.0, 3.0, 1.0), (5.0, 1.0, 1.0)]
        if dtype in SIGNED + FLOATS:
            spans += [(5.0, -4.0, -2.0), (-3.0, 3.0, 2.0)]
        if dtype in FLOATS:
            spans += [(0.0, 1.0, 0.25), (-0.5, 2.0, 0.5)]
        for start, stop, step in spans:
            wanted = arr(np.arange(start, stop, step), dtype)
            cases.add(f"{dtype} {start} {stop} {step}", op("arange", start=start, stop=stop, step=step, dtype=Atom(dtype)), [], wanted)
    for dtype in FLOATS + ["s32"]:
        for start, stop, num in ((0.0, 1.0, 5), (-2.0, 2.0, 9), (3.0, -3.0, 4), (1.0, 5.0, 1), (0.0, 1.0, 0), (2.0, 2.0, 3), (0.0, 10.0, 11)):
            if dtype == "s32" and (start > stop or (stop - start) % max(num - 1, 1)):
                continue
            wanted = arr(np.linspace(start, stop, num), dtype)
            cases.add(f"{dtype} {start} {stop} {num}", op("linspace", start=start, stop=stop, num=num, dtype=Atom(dtype)), [], wanted, "rounded", mlx=lambda: mx.linspace(start, stop, num, dtype=mx_dtype(dtype)))
