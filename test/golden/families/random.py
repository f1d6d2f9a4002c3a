"""Random numbers: the same from the same key as MLX's own Python gives."""

import mlx.core as mx
import numpy as np

from .common import *

KEY = arr([0x12345678, 0x9ABCDEF0], "u32")
SHAPES = [(), (1,), (5,), (2, 3), (0, 2), (2, 3, 1, 2), (300,)]


def threefry(key, count):
    """Threefry-2x32 of 20 rounds (Salmon et al., 2011), the hash under all of them."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    mask = 0xFFFFFFFF
    ks = [int(key[0]), int(key[1]), int(key[0]) ^ int(key[1]) ^ 0x1BD11BDA]
    v = [(count[0] + ks[0]) & mask, (count[1] + ks[1]) & mask]
    for i in range(5):
        for r in rotations[i % 2]:
            v[0] = (v[0] + v[1]) & mask
            v[1] = ((v[1] << r) & mask) | (v[1] >> (32 - r))
            v[1] ^= v[0]
        v[0] = (v[0] + ks[(i + 1) % 3]) & mask
        v[1] = (v[1] + ks[(i + 2) % 3] + i + 1) & mask
    return v


def bits(key, shape, width):
    """MLX's layout: the first words of all pairs, then the second ones."""
    size = int(np.prod(shape))
    length = size * width
    words = (length + 3) // 4
    half, even = words // 2, words % 2 == 0
    out = np.zeros(words, np.uint32)
    for i in range(half):
        first, second = threefry(key, (i, i + half + (not even)))
        out[i], out[i + half + (not even)] = first, second
    if not even:
        out[half] = threefry(key, (half, 0))[0]
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[width]
    return out.view(np.uint8)[:length].view(kind).reshape(shape)


def add_keys(cases):
    for seed in (0, 1, 42, 2**32 - 1, 2**32, 2**63 + 12345, 2**64 - 1):
        cases.add(f"{seed}", op("random_key", seed=seed), [], arr([seed >> 32, seed & 0xFFFFFFFF], "u32"))
        theirs = np.array(mx.random.key(seed))
        assert (theirs == [seed >> 32, seed & 0xFFFFFFFF]).all(), "MLX makes keys otherwise"
    for num in (1, 2, 3, 7):
        cases.add(f"{num}", op("random_split", num=num), [KEY], bits(KEY, (num, 2), 4), mlx=lambda k: mx.random.split(k, num))
    for width in (1, 2, 4):
        for shape in SHAPES:
            cases.add(f"{list(shape)} width {width}", op("random_bits", shape=list(shape), width=width), [KEY], bits(KEY, shape, width))
    # What MLX's Python can show of it.
    shown = np.array(mx.random.uniform(shape=(5,), key=to_mx(KEY)))
    assert np.allclose(shown, bits(KEY, (5,), 4) / 2**32, atol=1e-6), "MLX lays its bits out otherwise"


def add_distributions(cases):
    # A value may lie on the far side of a rounding from one device to another.
    tolerance = "rounded"
    for shape in SHAPES:
        size = list(shape)

        def uniform(label, low, high, dtype="f32"):
            cases.add(label, op("random_uniform", shape=size, dtype=Atom(dtype)), [low, high, KEY], None, tolerance, mlx=lambda l, h, k: mx.random.uniform(l, h, shape, mx_dtype(dtype), key=k))

        uniform(f"f32 {size}", arr(0.0, "f32"), arr(1.0, "f32"))
        cases.add(f"f32 {size}", op("random_normal", shape=size, dtype=Atom("f32"), loc=0.0, scale=1.0), [KEY], None, tolerance, mlx=lambda k: mx.random.normal(shape, key=k))
        cases.add(f"f32 {size}", op("random_gumbel", shape=size, dtype=Atom("f32")), [KEY], None, tolerance, mlx=lambda k: mx.random.gumbel(shape, key=k))
        cases.add(f"f32 {size}", op("random_laplace", shape=size, dtype=Atom("f32"), loc=0.0, scale=1.0), [KEY], None, tolerance, mlx=lambda k: mx.random.laplace(shape, key=k))
        cases.add(f"f32 {size}", op("random_truncated_normal", shape=size, dtype=Atom("f32")), [arr(-1.0, "f32"), arr(2.0, "f32"), KEY], None, tolerance, mlx=lambda l, h, k: mx.random.truncated_normal(l, h, shape, key=k))
        cases.add(f"s32 {size}", op("random_randint", shape=size, dtype=Atom("s32")), [arr(-3, "s32"), arr(10, "s32"), KEY], None, mlx=lambda l, h, k: mx.random.randint(l, h, shape, mx.int32, k))
        cases.add(f"{size}", op("random_bernoulli", shape=size), [arr(0.3, "f32"), KEY], None, mlx=lambda p, k: mx.random.bernoulli(p, shape, k))
    size = [4, 3]
    for dtype in ("f16", "bf16", "f32"):
        kind = mx_dtype(dtype)
        low, high = arr([-1.0, 0.0, 5.0], "f32"), arr([[1.0], [2.0], [6.0], [9.0]], "f32")
        cases.add(f"{dtype} bounds", op("random_uniform", shape=size, dtype=Atom(dtype)), [low, high, KEY], None, tolerance, mlx=lambda l, h, k: mx.random.uniform(l, h, size, kind, key=k))
        cases.add(f"{dtype} 2.5 0.5", op("random_normal", shape=size, dtype=Atom(dtype), loc=2.5, scale=0.5), [KEY], None, tolerance, mlx=lambda k: mx.random.normal(size, kind, 2.5, 0.5, k))
        cases.add(f"{dtype} 2.5 0.5", op("random_laplace", shape=size, dtype=Atom(dtype), loc=2.5, scale=0.5), [KEY], None, tolerance, mlx=lambda k: mx.random.laplace(size, kind, 2.5, 0.5, k))
        cases.add(f"{dtype} {size}", op("random_gumbel", shape=size, dtype=Atom(dtype)), [KEY], None, tolerance, mlx=lambda k: mx.random.gumbel(size, kind, key=k))
        cases.add(f"{dtype} bounds", op("random_truncated_normal", shape=size, dtype=Atom(dtype)), [low, high, KEY], None, tolerance, mlx=lambda l, h, k: mx.random.truncated_normal(l, h, size, kind, k))
    for dtype in INTS:
        low, high = arr([0, 5, 100], dtype), arr([10, 6, 120], dtype)
        cases.add(f"{dtype} bounds", op("random_randint", shape=size, dtype=Atom(dtype)), [low, high, KEY], None, mlx=lambda l, h, k: mx.random.randint(l, h, size, mx_dtype(dtype), k))
    p = arr([0.0, 1.0, 0.5], "f32")
    cases.add("bounds", op("random_bernoulli", shape=[6, 3]), [p, KEY], None, mlx=lambda p, k: mx.random.bernoulli(p, (6, 3), k))


def add_choices(cases):
    for dtype in ("f32", "f16", "bf16"):
        logits = noise((3, 5), dtype)
        for axis, shape in ((-1, [3]), (0, [5]), (1, [3]), (-1, [4, 3]), (-1, [2, 1, 3])):
            cases.add(f"{dtype} axis {axis} {shape}", op("random_categorical", axis=axis, shape=shape), [logits, KEY], None, mlx=lambda l, k: mx.random.categorical(l, axis, shape=shape, key=k))
    certain = arr([[-INF, 0.0, -INF], [0.0, -INF, -INF]], "f32")
    cases.add("f32 certain", op("random_categorical", axis=-1, shape=[2]), [certain, KEY], arr([1, 0], "u32"), mlx=lambda l, k: mx.random.categorical(l, -1, shape=[2], key=k))
    for dtype in ("f32", "s64", "bool", "bf16"):
        for shape, axis in (((7,), 0), ((3, 4), 0), ((3, 4), 1), ((2, 5, 2), -2), ((1,), 0)):
            values = noise(shape, dtype)
            cases.add(f"{dtype} {list(shape)} axis {axis}", op("random_permutation", axis=axis), [values, KEY], None, mlx=lambda x, k: mx.random.permutation(x, axis, k))
    empty = noise((0, 2), "f32")
    cases.add("f32 empty", op("random_permutation", axis=0), [empty, KEY], empty)


def add(cases):
    add_keys(cases)
    add_distributions(cases)
    add_choices(cases)
