"""The operations of bench/suite/models/operation.ex in NumPy and JAX, which share most of their functions: `xp` is
either module. What one of them lacks is not in its table."""

import numpy as np


def table(xp, jax=None):
    rows, columns = {"axis": 1}, {"axis": 0}

    def variance(x, **kw):
        return xp.var(x, **kw)

    def softmax(x):
        e = xp.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def quotient(a, b):
        if jax:
            return jax.lax.div(a, b)
        return np.trunc(np.divide(a, b)).astype(np.int32)

    operations = {
        "negate": xp.negative,
        "abs": xp.abs,
        "sign": xp.sign,
        "floor": xp.floor,
        "ceil": xp.ceil,
        "round": lambda x: xp.trunc(x + xp.copysign(xp.float32(0.5), x)),
        "exp": xp.exp,
        "expm1": xp.expm1,
        "sin": xp.sin,
        "cos": xp.cos,
        "tan": xp.tan,
        "tanh": xp.tanh,
        "sigmoid": jax.nn.sigmoid if jax else lambda x: 1 / (1 + np.exp(-x)),
        "atan": xp.arctan,
        "cbrt": xp.cbrt,
        "is_nan": xp.isnan,
        "log": xp.log,
        "log1p": xp.log1p,
        "sqrt": xp.sqrt,
        "rsqrt": jax.lax.rsqrt if jax else lambda x: 1 / np.sqrt(x),
        "asin": xp.arcsin,
        "clip": lambda x: xp.clip(x, -0.5, 0.5),
        "bitwise_not": xp.invert,
        "f32 to s32": lambda x: x.astype(xp.int32),
        "s32 to f32": lambda x: x.astype(xp.float32),
        "u8 to f32": lambda x: x.astype(xp.float32),
        "add": xp.add,
        "add a row": xp.add,
        "add a column": xp.add,
        "multiply": xp.multiply,
        "divide": xp.divide,
        "max": xp.maximum,
        "pow": xp.power,
        "atan2": xp.arctan2,
        "remainder": xp.fmod,
        "multiply s32": xp.multiply,
        "quotient s32": quotient,
        "remainder s32": jax.lax.rem if jax else np.fmod,
        "bitwise_and": xp.bitwise_and,
        "left_shift": lambda i, u: xp.left_shift(i, (u & 7).astype(xp.int32)),
        "less": xp.less,
        "logical_and": xp.logical_and,
        "select": lambda u, x, y: xp.where(u != 0, x, y),
        "sum": xp.sum,
        "sum of columns": lambda x: x.sum(**columns),
        "sum of rows": lambda x: x.sum(**rows),
        "mean of rows": lambda x: x.mean(**rows),
        "variance": variance,
        "variance of columns": lambda x: variance(x, **columns),
        "product of rows": lambda x: x.prod(**rows),
        "reduce_max": xp.max,
        "reduce_max of columns": lambda x: x.max(**columns),
        "reduce_max of rows": lambda x: x.max(**rows),
        "sum s32": xp.sum,
        "all": xp.all,
        "argmax of columns": lambda x: x.argmax(**columns),
        "argmax of rows": lambda x: x.argmax(**rows),
        "logsumexp of rows": lambda x: x.max(1) + xp.log(xp.exp(x - x.max(1, keepdims=True)).sum(1)),
        "softmax": softmax,
        "cumulative_sum of columns": lambda x: xp.cumsum(x, **columns),
        "cumulative_sum of rows": lambda x: xp.cumsum(x, **rows),
        "cumulative_max of rows": lambda x: jax.lax.cummax(x, 1) if jax else np.maximum.accumulate(x, 1),
        "sort": lambda x: xp.sort(x, **rows),
        "argsort": lambda x: xp.argsort(x, **rows),
        "median of rows": lambda x: xp.median(x, **rows),
        "take rows": lambda x, at: x[at],
        "take columns": lambda x, at: x[:, at],
        "gather": lambda x, pairs: x[pairs[:, 0], pairs[:, 1]],
        "take_along_axis": lambda x, along: xp.take_along_axis(x, along, 1),
        "concatenate": lambda x, y: xp.concatenate([x, y], 1),
        "pad": lambda x: xp.pad(x, ((1, 1), (2, 2))),
        "reverse": lambda x: xp.flip(x) + 0,
        "tile": lambda x: xp.tile(x, (2, 2)),
        "transpose": lambda x: x.T + 1,
        "slice": lambda x: x[1:-1, 1:-1] + 1,
        "dot": xp.dot,
        "dot s32": xp.dot,
        "fft": xp.fft.fft,
        "cholesky": xp.linalg.cholesky,
        "qr": lambda a: xp.abs(xp.linalg.qr(a)[1]),
        "svd": lambda a: xp.linalg.svd(a)[1],
        # Nx has the largest first.
        "eigh": lambda a: xp.linalg.eigh(a)[0][::-1],
        "solve": xp.linalg.solve,
        "determinant": xp.linalg.det,
    }
    return operations | (in_jax(jax, xp) if jax else in_numpy())


def in_numpy():
    def indexed_add(x, at, y):
        x = x.copy()
        np.add.at(x, at[:, 0], y)
        return x

    def indexed_put(x, pairs, values):
        x = x.copy()
        x[pairs[:, 0], pairs[:, 1]] = values
        return x

    generator = np.random.default_rng(42)
    return {
        "top_k": lambda x: -np.sort(np.partition(-x, min(50, x.shape[1]) - 1)[:, : min(50, x.shape[1])]),
        "indexed_add": indexed_add,
        "indexed_put": indexed_put,
        "random uniform": lambda x: generator.random(x.shape, np.float32),
        "random normal": lambda x: generator.standard_normal(x.shape, np.float32),
        "random randint": lambda x: generator.integers(0, 100, x.shape, np.int32),
    }


def in_jax(jax, jnp):
    def conv(images, kernels):
        return jax.lax.conv(images, kernels, (1, 1), "SAME")

    def pool(images):
        return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    key = lambda: jax.random.key(42)
    return {
        "erf": jax.scipy.special.erf,
        "f32 to bf16": lambda x: x.astype(jnp.bfloat16),
        "add bf16": jnp.add,
        "top_k": lambda x: jax.lax.top_k(x, min(50, x.shape[1]))[0],
        "indexed_add": lambda x, at, y: x.at[at[:, 0]].add(y),
        "indexed_put": lambda x, pairs, values: x.at[pairs[:, 0], pairs[:, 1]].set(values),
        "conv": conv,
        "conv backward": jax.grad(lambda i, k: conv(i, k).sum(), argnums=(0, 1)),
        "window_max": pool,
        "window_max backward": jax.grad(lambda i: pool(i).sum()),
        "window_sum": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3), (1, 1), "VALID"),
        "triangular_solve": lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True),
        "random uniform": lambda x: jax.random.uniform(key(), x.shape),
        "random normal": lambda x: jax.random.normal(key(), x.shape),
        "random randint": lambda x: jax.random.randint(key(), x.shape, 0, 100),
    }
