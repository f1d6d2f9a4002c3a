"""The cases of bench/suite/models/small.ex in NumPy and JAX, which share their functions: `xp` is either module."""

import numpy as np
from safetensors.numpy import load_file


def inputs(file):
    arrays = load_file(file)
    return [arrays[name] for name in sorted(arrays)]


def operations(xp, jax=None):
    def half(x):
        return x[x.size // 4 : x.size // 4 + x.size // 2]

    def chain(x, y):
        z = abs(xp.maximum(x + y, y) * y - x)
        return xp.maximum(-xp.minimum(z, y) + x, x) - y

    table = {"add": xp.add, "sum": xp.sum, "slice": half, "dot": xp.dot, "chain of ten": chain}
    if jax:
        key = jax.random.wrap_key_data
        table["random normal"] = lambda bits: jax.random.normal(key(bits), (), np.float32)
        table["random split"] = lambda bits: jax.random.key_data(jax.random.split(key(bits)))
    else:
        generator = np.random.default_rng(7)
        table["random normal"] = lambda bits: generator.standard_normal(dtype=np.float32)
    return table


def steps(xp, jax=None):
    """A step of so many operations, of floats and of integers. That of no operation counts."""
    sigmoid = jax.nn.sigmoid if jax else lambda x: 1 / (1 + np.exp(-x))
    rsqrt = jax.lax.rsqrt if jax else lambda x: 1 / np.sqrt(x)
    # Of numbers that are not negative.
    quotient = (lambda x, n: jax.lax.div(x, xp.full_like(x, n))) if jax else np.floor_divide
    remainder = (lambda x, n: jax.lax.rem(x, xp.full_like(x, n))) if jax else np.remainder

    def rotate(x):
        half = x.size // 2
        return xp.concatenate([x[half:], x[:half]])

    def two_of_floats(x):
        return x * 0.999 + 0.01

    def seven_of_floats(x):
        mean = xp.sum(x) * (1 / x.size)
        return xp.maximum(xp.tanh(x - mean) * 0.5, -0.4) + mean

    def thirty_of_floats(x):
        centered = x - xp.sum(x) * (1 / x.size)
        variance = xp.sum(centered * centered) * (1 / x.size)
        gate = sigmoid(rsqrt(variance + 1) * centered)
        new = xp.tanh(x)
        mixed = new * gate + (x - new) * 0.5
        clipped = mixed / xp.maximum(abs(mixed), 1)
        rotated = rotate(xp.where(mixed > 0, mixed, clipped))
        powers = xp.exp(rotated - xp.max(rotated))
        return rotated * 0.9 + powers / xp.sum(powers)

    def two_of_integers(x):
        return x * 5 & 0xFFFF

    def seven_of_integers(x):
        few = xp.sum(x) & 1023
        return ((x + few) * 5 ^ few) >> 1 & 0xFFFF

    def thirty_of_integers(x):
        few = xp.sum(x) & 1023
        a = x * 5 + few & 0xFFFF
        b = (a << 3 ^ a) & 0xFFFF
        rotated = rotate(b >> 2 ^ b)
        d = (xp.max(rotated) - rotated) * 3 & 0xFFFF
        chosen = xp.where(d < few, rotated, d)
        e = remainder(quotient(chosen + 7, 3), 1021)
        f = xp.minimum(xp.maximum(e, 11), 1009) * 29
        return abs((f ^ rotated) + e - few) & 0xFFFF

    return {
        (0, "i"): lambda counter: counter + 1,
        (2, "f"): two_of_floats,
        (7, "f"): seven_of_floats,
        (30, "f"): thirty_of_floats,
        (2, "i"): two_of_integers,
        (7, "i"): seven_of_integers,
        (30, "i"): thirty_of_integers,
    }


def conditional(xp):
    """Loops whose condition is data: the first state, the condition and the step."""
    return {
        "halving": (lambda x: abs(x) + 1, lambda x: xp.sum(x) > 1, lambda x: x * 0.999),
        "congruence": (
            lambda x: x + 2**30,
            lambda x: x >= 262_144,
            lambda x: x * 1_103_515_245 + 12_345 & 0x7FFFFFFF,
        ),
    }
