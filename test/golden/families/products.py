"""Matrix products and what is made of them."""

import mlx.core as mx
import numpy as np

from .common import *


def integer_product(function):
    """Products of integers wrap as their type does."""

    def compute(*arrays):
        if all(a.dtype.kind in "ui" for a in arrays):
            kind = np.result_type(*arrays)
            exact = function(*[a.astype(object) for a in arrays])
            flat = np.ravel(np.asarray(exact, object))
            bits = 8 * kind.itemsize
            unsigned = np.array([int(v) % (1 << bits) for v in flat], np.uint64)
            return unsigned.astype(np.dtype(f"u{kind.itemsize}")).view(kind).reshape(np.shape(exact))
        return function(*arrays)

    return compute


def add_matmul(cases):
    shapes = [
        ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((2, 2, 3), (2, 3, 2)), ((2, 1, 2, 3), (4, 3, 2)), ((5, 2, 3), (3, 4)),
        ((1, 1), (1, 1)), ((2, 0), (0, 3)), ((0, 2), (2, 3)), ((0, 2, 2), (2, 3)), ((17, 33), (33, 9)), ((1, 64), (64, 1)), ((2, 0, 3), (2, 3, 4)),
    ]  # fmt: skip
    for a, b in shapes:
        pair = [noise(a, "f32"), noise(b, "f32", key=1)]
        cases.like_mlx(f"f32 {list(a)} {list(b)}", op("matmul"), pair, np.matmul, mx.matmul, "product")
    for dtype in ("f16", "bf16", "f64", "c64"):
        for a, b in (((2, 3), (3, 4)), ((3,), (3,)), ((2, 2, 3), (3, 2)), ((20, 32), (32, 12)), ((2, 0), (0, 3))):
            pair = [noise(a, dtype), noise(b, dtype, key=1)]
            cases.like_mlx(f"{dtype} {list(a)} {list(b)}", op("matmul"), pair, np.matmul, mx.matmul, "product")
    for dtype in INTS:
        for a, b in (((2, 3), (3, 4)), ((3,), (3,)), ((2, 1, 2, 3), (2, 3, 2)), ((20, 16), (16, 18)), ((2, 0), (0, 3))):
            pair = [noise(a, dtype, -30, 30), noise(b, dtype, -30, 30, 1)]
            cases.add(f"{dtype} {list(a)} {list(b)}", op("matmul"), pair, integer_product(np.matmul)(*pair))
        edge = extremes(dtype)
        pair = [edge[None, :], edge[:, None]]
        cases.add(f"{dtype} extremes", op("matmul"), pair, integer_product(np.matmul)(*pair))
        many = np.resize(edge, (17, 17))
        cases.add(f"{dtype} extremes of many", op("matmul"), [many, many.T.copy()], integer_product(np.matmul)(many, many.T))
    pair = [arr([[1, 2], [3, 4]], "u8"), arr([[-1, 1], [2, 0]], "s8")]
    cases.add("u8 and s8", op("matmul"), pair, arr([[3, 1], [5, 3]], "s16"))
    pair = [noise((2, 3), "s32"), noise((3, 2), "f32")]
    cases.like_mlx("s32 and f32", op("matmul"), pair, np.matmul, mx.matmul, "product")
    pair = [noise((2, 3), "f16"), noise((3, 2), "bf16")]
    cases.like_mlx("f16 and bf16", op("matmul"), pair, np.matmul, mx.matmul, "product")
    pair = [arr([[1.0, INF], [NAN, 1.0]], "f32"), arr([[1.0, 2.0], [3.0, 4.0]], "f32")]
    cases.like_mlx("f32 special", op("matmul"), pair, np.matmul, mx.matmul, "product")


def add_addmm(cases):
    for dtype in FLOATS:
        for c, a, b in (((2, 4), (2, 3), (3, 4)), ((4,), (2, 3), (3, 4)), ((), (2, 3), (3, 4)), ((1, 2, 1), (3, 2, 5), (5, 4)), ((20, 12), (20, 32), (32, 12)), ((2, 3), (2, 0), (0, 3))):
            for alpha, beta in ((1.0, 1.0), (0.5, -2.0)):
                inputs = [noise(c, dtype), noise(a, dtype, key=1), noise(b, dtype, key=2)]
                cases.like_mlx(
                    f"{dtype} {list(c)} {list(a)} {list(b)} {alpha} {beta}",
                    op("addmm", alpha=alpha, beta=beta),
                    inputs,
                    lambda c, a, b: alpha * (a @ b) + beta * c,
                    lambda c, a, b: mx.addmm(c, a, b, alpha, beta),
                    "product",
                )


def add_tensordot(cases):
    for a, b, axes_a, axes_b in (
        ((2, 3), (3, 4), [1], [0]), ((2, 3), (4, 3), [-1], [-1]), ((2, 3, 4), (4, 3, 5), [1, 2], [1, 0]), ((2, 3), (2, 3), [0, 1], [0, 1]),
        ((2,), (3,), [], []), ((2, 3, 4), (3,), [1], [0]), ((2, 3, 1, 2), (2, 4, 3), [3, 1], [0, 2]), ((2, 0), (0, 3), [1], [0]),
    ):  # fmt: skip
        for dtype in ("f32", "f16", "bf16", "f64", "c64", "s32", "u8", "s64"):
            pair = [noise(a, dtype), noise(b, dtype, key=1)]
            reference = integer_product(lambda x, y: np.tensordot(x, y, (axes_a, axes_b)))
            operation = op("tensordot", axes_a=axes_a, axes_b=axes_b)
            label = f"{dtype} {list(a)} {list(b)} {axes_a} {axes_b}"
            if dtype in INTS:
                cases.add(label, operation, pair, reference(*pair))
            else:
                mlx = lambda x, y: mx.tensordot(x, y, [axes_a, axes_b])
                cases.like_mlx(label, operation, pair, reference, mlx, "product")
    pair = [noise((20, 30), "bf16"), noise((30, 10), "bf16", key=1)]
    cases.like_mlx("bf16 larger", op("tensordot", axes_a=[1], axes_b=[0]), pair, lambda x, y: x @ y, lambda x, y: mx.tensordot(x, y, 1), "product")


def add_einsum(cases):
    table = [
        ("ij,jk->ik", [(2, 3), (3, 4)]), ("ij,jk", [(2, 3), (3, 4)]), ("ii->i", [(3, 3)]), ("ii->", [(3, 3)]), ("ij->ji", [(2, 3)]), ("ij->", [(2, 3)]),
        ("ijk->ik", [(2, 3, 4)]), ("i,j->ij", [(2,), (3,)]), ("i,i->", [(3,), (3,)]), ("i,i", [(3,), (3,)]), ("ij,ij->ij", [(2, 3), (2, 3)]),
        ("bij,bjk->bik", [(2, 3, 2), (2, 2, 4)]), ("bi,ij,bj->b", [(2, 3), (3, 4), (2, 4)]), ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 1, 4)]),
        ("ij,kj->ki", [(2, 3), (4, 3)]), ("a,b,c->abc", [(2,), (3,), (2,)]), (" i j , j k -> k i ", [(2, 3), (3, 2)]), ("ij,j->i", [(0, 3), (3,)]),
        ("ij,jk->ik", [(2, 0), (0, 3)]), ("iij,j->i", [(2, 2, 3), (3,)]), (",i->i", [(), (3,)]),
    ]  # fmt: skip
    for text, shapes in table + [("...ij,...jk->...ik", [(2, 2, 3), (2, 3, 2)]), ("...i->...", [(2, 3, 4)])]:
        for dtype in ("f32", "bf16", "c64", "s32"):
            if dtype == "s32" and "." in text:
                continue
            operands = [noise(shape, dtype, key=i) for i, shape in enumerate(shapes)]
            label = f"{dtype} {text} {[list(s) for s in shapes]}"
            reference = lambda *x: np.einsum(text, *x)
            operation = op("einsum", subscripts=text)
            if dtype == "s32" and len(shapes) > 1:
                cases.add(label, operation, operands, np.asarray(reference(*operands), np.int32))
            elif dtype == "s32":
                cases.like_mlx(label, operation, operands, reference, lambda *x: mx.einsum(text, *x), "exact")
            else:
                cases.like_mlx(label, operation, operands, reference, lambda *x: mx.einsum(text, *x), "product")
    for dtype in ("f16", "f64", "u8", "s64"):
        pair = [noise((3, 4), dtype), noise((4, 2), dtype, key=1)]
        reference = integer_product(lambda x, y: np.matmul(x, y))
        if dtype in INTS:
            cases.add(f"{dtype}", op("einsum", subscripts="ij,jk->ik"), pair, reference(*pair))
        else:
            cases.like_mlx(f"{dtype}", op("einsum", subscripts="ij,jk->ik"), pair, reference, lambda *x: mx.einsum("ij,jk->ik", *x), "product")
    pair = [noise((20, 32), "f16"), noise((32, 12), "f16", key=1)]
    cases.like_mlx("f16 larger", op("einsum", subscripts="ij,jk->ik"), pair, np.matmul, lambda *x: mx.einsum("ij,jk->ik", *x), "product")


def add_others(cases):
    for dtype in INEXACT:
        for a, b in (((3,), (3,)), ((2, 3), (3,)), ((2, 3), (4, 3)), ((2, 2, 3), (4, 3)), ((), (3,)), ((2, 0), (3, 0))):
            pair = [noise(a, dtype), noise(b, dtype, key=1)]
            cases.like_mlx(f"{dtype} {list(a)} {list(b)}", op("inner"), pair, np.inner, mx.inner, "product")
    for dtype in ("s32", "u8", "s64"):
        pair = [noise((2, 3), dtype), noise((4, 3), dtype, key=1)]
        cases.add(dtype, op("inner"), pair, integer_product(np.inner)(*pair))
        pair = [arr(3, dtype), noise((3,), dtype)]
        cases.add(f"{dtype} scalar", op("inner"), pair, integer_product(np.inner)(*pair))
    for dtype in ALL:
        pair = [noise((3,), dtype), noise((2,), dtype, key=1)]
        cases.like_mlx(dtype, op("outer"), pair, np.outer, mx.outer, "rounded")
        pair = [noise((2, 2), dtype), noise((2, 3), dtype, key=1)]
        cases.like_mlx(dtype, op("kron"), pair, np.kron, mx.kron, "rounded")
    for a, b in (((2, 2), (3,)), ((), (3,)), ((0,), (2,))):
        pair = [noise(a, "f32"), noise(b, "f32", key=1)]
        cases.like_mlx(f"f32 {list(a)} {list(b)}", op("outer"), pair, np.outer, mx.outer, "rounded")
    for a, b in (((2,), (3,)), ((2,), (2, 3)), ((1, 2, 2), (2, 1, 3))):
        pair = [noise(a, "f32"), noise(b, "f32", key=1)]
        cases.like_mlx(f"f32 {list(a)} {list(b)}", op("kron"), pair, np.kron, mx.kron, "rounded")

    def vecdot(a, b, axis):
        return np.sum(np.conjugate(a) * b, axis=axis)

    for dtype in INEXACT:
        for a, b, axis in (((2, 3), (2, 3), -1), ((2, 3), (1, 3), -1), ((2, 3, 4), (2, 3, 4), 1), ((2, 3, 4), (2, 3, 4), -2), ((3,), (3,), 0)):
            pair = [noise(a, dtype), noise(b, dtype, key=1)]
            label = f"{dtype} {list(a)} {list(b)} axis {axis}"
            cases.like_mlx(label, op("vecdot", axis=axis), pair, lambda a, b: vecdot(a, b, axis), lambda a, b: mx.vecdot(a, b, axis=axis), "product")
    pair = [noise((2, 3), "s32"), noise((2, 3), "s32", key=1)]
    cases.like_mlx("s32", op("vecdot", axis=-1), pair, lambda a, b: vecdot(a, b, -1), lambda a, b: mx.vecdot(a, b, axis=-1))


def add_gather_mm(cases):
    def reference(a, b, left, right):
        a, b = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
        left = np.arange(len(a)) if left is None else left
        right = np.arange(len(b)) if right is None else right
        left, right = np.broadcast_arrays(left, right)
        out = np.zeros(left.shape + (a.shape[-2], b.shape[-1]))
        for place in np.ndindex(*left.shape):
            out[place] = a[left[place]] @ b[right[place]]
        return out

    for dtype in FLOATS:
        for label, a, b, left, right, is_sorted in (
            ("right", (3, 2, 4), (5, 4, 3), None, [0, 4, 2], False),
            ("left", (3, 2, 4), (2, 4, 3), [2, 2], None, False),
            ("both", (3, 2, 4), (5, 4, 3), [0, 1], [[0], [4]], False),
            ("neither", (3, 2, 4), (3, 4, 3), None, None, False),
            ("sorted", (4, 1, 4), (3, 4, 5), None, [0, 0, 1, 2], True),
            ("batches", (2, 2, 2, 3), (2, 2, 3, 2), [0, 3], [3, 1], False),
        ):
            inputs = [noise(a, dtype), noise(b, dtype, key=1), None if left is None else arr(left, "u32"), None if right is None else arr(right, "u32")]
            operation = op("gather_mm", sorted=is_sorted)
            wanted = arr(reference(*[None if array is None else wide(array) for array in inputs]), dtype)
            # MLX's CPU form computes f32 only; the operation takes every type of float.
            mlx = lambda a, b, l, r: mx.gather_mm(a, b, lhs_indices=l, rhs_indices=r, sorted_indices=is_sorted)
            cases.add(f"{dtype} {label}", operation, inputs, wanted, "product", mlx=mlx if dtype == "f32" else None)


def add(cases):
    add_matmul(cases)
    add_addmm(cases)
    add_tensordot(cases)
    add_einsum(cases)
    add_others(cases)
    add_gather_mm(cases)
