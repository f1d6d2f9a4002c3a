"""Changes of type and of the reading of bits."""

import mlx.core as mx
import numpy as np

from .common import *


def add_astype(cases):
    for source in ALL:
        for target in ALL:
            values = [0, 1, 2, 100]
            if source in FLOATS + ["c64"]:
                values += [1.75, 99.5]
            if source in SIGNED + FLOATS + ["c64"] and target not in UNSIGNED + ["bool"]:
                values += [-1, -100]
            given = arr(values, source)
            number = wide(given).real if source == "c64" and target != "bool" else wide(given)
            if target == "c64":
                number = wide(given)
            if target in INTS and source in FLOATS + ["c64"]:
                number = np.trunc(number)
            wanted = arr(number.astype(np.float64) if target in FLOATS and source not in INEXACT else number, target)
            cases.add(f"{source} to {target}", op("astype", dtype=Atom(target)), [given], wanted, mlx=lambda x: x.astype(mx_dtype(target)))
    # Integers keep their low bits.
    for source in INTS:
        for target in INTS:
            given = extremes(source)
            cases.add(f"{source} to {target} wraps", op("astype", dtype=Atom(target)), [given], given.astype(np_dtype(target)))
    # Floats are rounded to even and overflow to infinity.
    given = arr([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, 65520.0, 1e-8, 6e-8, NAN, -INF, 1e39, -0.0], "f64")
    for source in ("f64", "f32"):
        for target in ("f16", "bf16", "f32"):
            values = arr(given, source)
            cases.add(f"{source} to {target} rounds", op("astype", dtype=Atom(target)), [values], arr(values, target), "bits")
    values = arr([1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.3e38, 3.4e38], "f32")
    cases.add("f32 to bf16 ties", op("astype", dtype=Atom("bf16")), [values], arr(values, "bf16"), "bits")
    for source in FLOATS:
        values = arr([NAN, INF, -INF, -0.0, 0.0, 1e-5], source)
        cases.add(f"{source} to bool special", op("astype", dtype=Atom("bool")), [values], arr([True, True, True, False, False, True], "bool"))
    for source in ("s64", "u64"):
        for target in ("f32", "f64"):
            values = extremes(source)
            cases.add(f"{source} to {target} rounds", op("astype", dtype=Atom(target)), [values], values.astype(np_dtype(target)))
    values = arr([1j, 0j, -0.0 + 0j], "c64")
    cases.add("c64 to bool imaginary", op("astype", dtype=Atom("bool")), [values], arr([True, False, False], "bool"))
    for shape in ((), (0,), (2, 0), (2, 1, 3, 2)):
        values = noise(shape, "f32")
        cases.add(f"f32 to bf16 {list(shape)}", op("astype", dtype=Atom("bf16")), [values], values.astype(bf16))


def add_to_integer(cases):
    for source in FLOATS:
        for target in INTS:
            info = np.iinfo(np_dtype(target))
            given = arr([0, 1.75, -1.75, 100.5, -100.5, 300.5, -300.5, 65000.0, -0.0, 3e9, 1e19, 5e18, -5e18], source)
            given = given[np.isfinite(wide(given))]
            if target != "u64":
                given = given[np.abs(wide(given)) < 2.0**63]
            # From 64 bits, integers wrap around.
            numbers = [int(number) % 2**64 for number in wide(given)]
            wanted = np.array(numbers, np.uint64).astype(np_dtype(target))
            cases.add(f"{source} to {target}", op("to_integer", dtype=Atom(target)), [given], wanted)
            special = arr([NAN, INF, -INF, 1.5], source)
            wanted = np.array([0, info.max, info.min, 1], np_dtype(target))
            cases.add(f"{source} to {target} special", op("to_integer", dtype=Atom(target)), [special], wanted)
    values = arr([-1, 2, 100], "s32")
    cases.add("s32 to u8", op("to_integer", dtype=Atom("u8")), [values], values.astype(np.uint8))
    cases.add("bool to s32", op("to_integer", dtype=Atom("s32")), [arr([True, False], "bool")], arr([1, 0], "s32"))
    for shape in ((), (0,), (2, 0), (2, 1, 3, 2)):
        values = noise(shape, "f32")
        cases.add(f"f32 to s32 {list(shape)}", op("to_integer", dtype=Atom("s32")), [values], np.trunc(values).astype(np.int32))


def add_view(cases):
    pairs = [
        ("f32", "u32"), ("f32", "u8"), ("f32", "s16"), ("f32", "f64"), ("u8", "f32"), ("u8", "u8"), ("f16", "bf16"), ("bf16", "u16"),
        ("s64", "u32"), ("u16", "s8"), ("f64", "u64"), ("c64", "f32"), ("f32", "c64"), ("s8", "bool"), ("bool", "u8"), ("u32", "f16"),
    ]  # fmt: skip
    for source, target in pairs:
        given = noise((2, 3, 8), source) if source != "s8" else arr([0, 1] * 24, "s8", (2, 3, 8))
        wanted = np.ascontiguousarray(given).view(np_dtype(target))
        cases.add(f"{source} as {target}", op("view", dtype=Atom(target)), [given], wanted, "bits", mlx=lambda x: mx.view(x, mx_dtype(target)))
    scalar = arr(-1.5, "f32")
    cases.add("f32 scalar as u32", op("view", dtype=Atom("u32")), [scalar], scalar.view(np.uint32), "bits")
    empty = noise((2, 0), "f32")
    cases.add("f32 empty as u8", op("view", dtype=Atom("u8")), [empty], np.zeros((2, 0), np.uint8), "bits", mlx=lambda x: mx.view(x, mx.uint8))


def add_fp8(cases):
    # All codes but the two that are no numbers, which MLX reads as 480.
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    meaning = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    for dtype in ("f16", "bf16", "f32"):
        cases.add(f"to {dtype}", op("from_fp8", dtype=Atom(dtype)), [codes], arr(meaning, dtype), "exact", mlx=lambda x: mx.from_fp8(x, mx_dtype(dtype)))
        cases.add(f"{dtype} codes", op("to_fp8"), [arr(meaning, dtype)], codes, mlx=mx.to_fp8)
        between = arr([0.3, -0.3, 1.06, 1.07, 17.0, 19.0, 440.0, -447.0, 1e-3, 2.9e-3, 0.0, 123.4], dtype)
        rounded = arr(between, "f32").astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        cases.add(f"{dtype} between codes", op("to_fp8"), [between], rounded, mlx=mx.to_fp8)
        # Beyond the largest, 448, MLX stays at it.
        large = arr([449.0, 480.0, 1000.0, -1000.0], dtype)
        cases.add(f"{dtype} too large", op("to_fp8"), [large], arr([0x7E, 0x7E, 0x7E, 0xFE], "u8"), mlx=mx.to_fp8)
    empty = arr([], "f32", (0, 3))
    cases.add("f32 empty", op("to_fp8"), [empty], np.zeros((0, 3), np.uint8))
    cases.add("scalar to f32", op("from_fp8", dtype=Atom("f32")), [arr(0x38, "u8")], arr(1.0, "f32"))


def add(cases):
    add_astype(cases)
    add_view(cases)
    add_fp8(cases)
    add_to_integer(cases)
