"""Linear algebra. Factors that are unique but for signs are compared by what they multiply to (see `form`)."""

import mlx.core as mx
import numpy as np
import scipy.linalg

from .common import *

BOTH = ("f32", "f64")
SQUARE = [(1, 1), (2, 2), (5, 5), (2, 3, 3), (2, 1, 2, 2), (0, 2, 2)]
ANY = SQUARE + [(2, 5), (5, 2), (3, 2, 4)]


def well(shape, dtype):
    """A matrix that is far from singular, not symmetric."""
    values = wide(noise(shape, dtype, -1, 1))
    return arr(values + 2 * np.eye(shape[-2], shape[-1]), dtype)


def positive(shape, dtype):
    """A symmetric (Hermitian) positive definite matrix."""
    values = wide(noise(shape, dtype, -1, 1))
    values = values @ np.conjugate(np.swapaxes(values, -1, -2)) + shape[-1] * np.eye(shape[-1])
    return arr(values, dtype)


def hermitian(shape, dtype):
    values = wide(noise(shape, dtype, -2, 2))
    return arr(values + np.conjugate(np.swapaxes(values, -1, -2)) + np.diag(np.arange(shape[-1]) * 3), dtype)


def adjoint(a):
    return np.conjugate(np.swapaxes(a, -1, -2))


def identity_like(shape, n, dtype):
    return arr(np.broadcast_to(np.eye(n), shape[:-2] + (n, n)), dtype)


def each(function, *arrays):
    """A function of matrices on stacks of them, several results each."""
    batch = arrays[0].shape[:-2]
    results = [function(*[a[place] for a in arrays]) for place in np.ndindex(*batch)]
    if not results:
        return None
    results = [r if isinstance(r, tuple) else (r,) for r in results]
    return [np.stack(parts).reshape(batch + parts[0].shape) for parts in zip(*results)]


def add_cholesky(cases):
    for dtype in BOTH:
        for shape in SQUARE:
            a = positive(shape, dtype)
            lower = np.linalg.cholesky(wide(a))
            for upper in (False, True):
                factor = arr(adjoint(lower) if upper else lower, dtype)
                label = f"{dtype} {list(shape)} {upper}"
                cases.add(label, op("cholesky", upper=upper), [a], factor, "decomposed")
                inverse = np.linalg.inv(wide(a)) if a.size else wide(a)
                cases.add(label, op("cholesky_inv", upper=upper), [factor], arr(inverse, dtype), "decomposed")


def add_factors(cases):
    for dtype in BOTH:
        for shape in ANY:
            a = well(shape, dtype)
            k = min(shape[-2:])
            label = f"{dtype} {list(shape)}"
            zeros = np.zeros(shape[:-2] + (k, shape[-1]), np_dtype(dtype))
            cases.add(label, op("qr"), [a], [a, identity_like(shape, k, dtype), zeros], "decomposed", form="qr")
            s = arr(np.linalg.svd(wide(a), compute_uv=False) if a.size else np.zeros(shape[:-2] + (k,)), dtype)
            cases.add(label, op("svd", compute_uv=False), [a], s, "decomposed")
            if a.size == 0:
                continue
            unit = [identity_like(shape, n, dtype) for n in shape[-2:]]
            cases.add(f"{label} vectors", op("svd", compute_uv=True), [a], [s, a, *unit], "decomposed", form="svd")
            p, l, u = each(lambda m: scipy.linalg.lu(m, p_indices=True), wide(a))
            zero = np.zeros(shape, np_dtype(dtype))
            cases.add(label, op("lu"), [a], [arr(l, dtype), arr(u, dtype), zero], "decomposed", form="lu")
            packed, pivots = each(lambda m: scipy.linalg.lu_factor(m), wide(a))
            cases.add(label, op("lu_factor"), [a], [arr(packed, dtype), arr(pivots, "u32")], "decomposed", mlx=mx.linalg.lu_factor)
            cases.add(label, op("pinv"), [a], arr(np.linalg.pinv(wide(a)), dtype), "decomposed")
        # Rows have to change places more than once here, so that back is another order than forth: (l·u)[order] is a.
        turned = arr([[0, 0, 1, 0], [3, 0, 0, 1], [0, 5, 0, 0], [1, 1, 0, 7]], dtype)
        p, l, u = scipy.linalg.lu(turned, p_indices=True)
        cases.add(f"{dtype} turned", op("lu"), [turned], [arr(l, dtype), arr(u, dtype), np.zeros((4, 4), np_dtype(dtype))], "decomposed", form="lu")
        singular = arr([[1, 2], [2, 4]], dtype)
        cases.add(f"{dtype} singular", op("pinv"), [singular], arr(np.linalg.pinv(singular), dtype), "decomposed")
        cases.add(f"{dtype} singular", op("svd", compute_uv=False), [singular], arr([5, 0], dtype), "decomposed")
    a = noise((3, 2), "c64")
    s = np.linalg.svd(wide(a), compute_uv=False)
    cases.add("c64", op("svd", compute_uv=True), [a], [arr(s, "f32"), a, arr(np.eye(3), "c64"), arr(np.eye(2), "c64")], "decomposed", form="svd")


def add_eigen(cases):
    for dtype in ("f32", "f64", "c64"):
        real = "f32" if dtype == "c64" else dtype
        for shape in SQUARE:
            if dtype == "c64" and 0 in shape:
                continue
            a = hermitian(shape, dtype)
            w = arr(np.linalg.eigvalsh(wide(a)) if a.size else np.zeros(shape[:-1]), real)
            for upper in (False, True):
                # Only the triangle that is asked for is looked at.
                triangle = arr(np.triu(a) if upper else np.tril(a), dtype)
                label = f"{dtype} {list(shape)} {upper}"
                cases.add(label, op("eigvalsh", upper=upper), [triangle], w, "decomposed")
                if a.size:
                    unit = identity_like(shape, shape[-1], dtype)
                    cases.add(label, op("eigh", upper=upper), [triangle], [w, a, unit], "decomposed", form="eigh")
        for shape in SQUARE:
            a = well(shape, dtype)
            if a.size == 0:
                if dtype != "c64":
                    cases.add(f"{dtype} {list(shape)}", op("eigvals"), [a], np.zeros(shape[:-1], np.complex64), form="eigvals")
                continue
            w = np.linalg.eigvals(wide(a)).astype(np.complex128)
            ordered = np.stack([np.array(sorted(row, key=lambda z: (round(z.real, 3), round(z.imag, 3)))) for row in w.reshape(-1, shape[-1])])
            w = arr(ordered.reshape(w.shape), "c64")
            cases.add(f"{dtype} {list(shape)}", op("eigvals"), [a], w, "decomposed", form="eigvals")
            zero = np.zeros(shape, np.complex64)
            cases.add(f"{dtype} {list(shape)}", op("eig"), [a], [w, zero, np.ones(shape[:-1], np.float32)], "decomposed", form="eig")
        turn = arr([[0, -1], [1, 0]], dtype)
        cases.add(f"{dtype} rotation", op("eigvals"), [turn], arr([-1j, 1j], "c64"), "decomposed", form="eigvals")


def add_inverses(cases):
    for dtype in BOTH:
        for shape in SQUARE:
            a = well(shape, dtype)
            label = f"{dtype} {list(shape)}"
            inverse = lambda m: arr(np.linalg.inv(wide(m)) if m.size else wide(m), dtype)
            cases.add(label, op("inv"), [a], inverse(a), "decomposed")
            for upper in (False, True):
                triangle = arr(np.triu(a) if upper else np.tril(a), dtype)
                cases.add(f"{label} {upper}", op("tri_inv", upper=upper), [triangle], inverse(triangle), "decomposed")
                b = noise(shape[:-1] + (2,), dtype, key=1)
                x = np.linalg.solve(wide(triangle), wide(b)) if a.size else wide(b)
                cases.add(f"{label} {upper}", op("solve_triangular", upper=upper), [triangle, b], arr(x, dtype), "decomposed")
            b = noise(shape[:-1] + (2,), dtype, key=1)
            x = np.linalg.solve(wide(a), wide(b)) if a.size else wide(b)
            cases.add(label, op("solve"), [a, b], arr(x, dtype), "decomposed")
        a, b = well((3, 3), dtype), noise((3,), dtype)
        cases.add(f"{dtype} vector", op("solve"), [a, b], arr(np.linalg.solve(wide(a), wide(b)), dtype), "decomposed", mlx=mx.linalg.solve)
        turned = arr([[0, 2, 1], [3, 0, 1], [1, 1, 0]], dtype)
        b = arr([1, 2, 3], dtype)
        cases.add(f"{dtype} pivots", op("solve"), [turned, b], arr(np.linalg.solve(turned, b), dtype), "decomposed", mlx=mx.linalg.solve)


def add_determinants(cases):
    for dtype in BOTH:
        for shape in SQUARE:
            a = well(shape, dtype)
            label = f"{dtype} {list(shape)}"
            cases.add(label, op("det"), [a], arr(np.linalg.det(wide(a)), dtype), "decomposed", mlx=mx.linalg.det)
            sign, log = np.linalg.slogdet(wide(a))
            cases.add(label, op("slogdet"), [a], [arr(sign, dtype), arr(log, dtype)], "decomposed", mlx=mx.linalg.slogdet)
        for label, rows in (("singular", [[1, 2], [2, 4]]), ("negative", [[0, 1], [1, 0]]), ("three", [[0, 2, 1], [3, 0, 1], [1, 1, 0]])):
            a = arr(rows, dtype)
            cases.add(f"{dtype} {label}", op("det"), [a], arr(np.linalg.det(wide(a)), dtype), "decomposed", mlx=mx.linalg.det)
            sign, log = np.linalg.slogdet(wide(a))
            cases.add(f"{dtype} {label}", op("slogdet"), [a], [arr(sign, dtype), arr(log, dtype)], "decomposed", mlx=mx.linalg.slogdet)


def add_cross(cases):
    for dtype in FLOATS + ["s32", "c64"]:
        for shape, axis in (((3,), -1), ((2, 3), -1), ((3, 2), 0), ((2, 3, 2), 1)):
            pair = [noise(shape, dtype), noise(shape, dtype, key=1)]
            cases.like_mlx(f"{dtype} {list(shape)} {axis}", op("cross", axis=axis), pair, lambda a, b: np.cross(a, b, axis=axis), lambda a, b: mx.linalg.cross(a, b, axis), "summed")
    pair = [noise((2, 1, 3), "f32"), noise((4, 3), "f32", key=1)]
    cases.like_mlx("f32 broadcast", op("cross", axis=-1), pair, lambda a, b: np.cross(a, b), lambda a, b: mx.linalg.cross(a, b, -1), "summed")


def add(cases):
    add_cholesky(cases)
    add_factors(cases)
    add_eigen(cases)
    add_inverses(cases)
    add_determinants(cases)
    add_cross(cases)
