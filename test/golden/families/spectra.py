"""Fourier transforms."""

import mlx.core as mx
import numpy as np

from .common import *


def add(cases):
    table = [
        # shape, sizes, axes
        ((8,), [8], [0]), ((5,), [5], [-1]), ((7,), [4], [0]), ((3,), [8], [0]), ((2, 6), [6], [1]), ((2, 6), [2], [0]), ((3, 4), [3, 4], [0, 1]),
        ((3, 4), [4, 2], [-2, -1]), ((2, 3, 4), [4, 2], [2, 0]), ((1,), [1], [0]), ((2, 3, 1, 2), [3, 2], [1, 3]), ((13,), [13], [0]),
    ]  # fmt: skip
    transforms = {
        "fft": (np.fft.fftn, mx.fft.fftn, ("c64", "f32")),
        "ifft": (np.fft.ifftn, mx.fft.ifftn, ("c64", "f32")),
        "rfft": (np.fft.rfftn, mx.fft.rfftn, ("f32", "s32")),
        "irfft": (np.fft.irfftn, mx.fft.irfftn, ("c64",)),
    }
    for name, (reference, mlx, dtypes) in transforms.items():
        out = "f32" if name == "irfft" else "c64"
        for shape, sizes, axes in table:
            if name == "irfft" and sizes[-1] == 1:
                continue
            for dtype in dtypes:
                for norm in ("backward", "ortho", "forward"):
                    if norm != "backward" and (shape, dtype) not in (((8,), dtypes[0]), ((3, 4), dtypes[0])):
                        continue
                    values = noise(shape, dtype)
                    wanted = arr(reference(wide(values), sizes, axes, norm=norm), out)
                    operation = op(name, sizes=sizes, axes=axes, norm=Atom(norm))
                    cases.add(f"{dtype} {list(shape)} {sizes} {axes} {norm}", operation, [values], wanted, "summed", mlx=lambda x: mlx(x, sizes, axes, norm=norm))
        values = arr([1, 0, 0, 0, 0, 0], "bool") if name != "irfft" else arr([1, 0, 0], "f16")
        wanted = arr(reference(values.astype(np.float64), [4], [0]), out)
        label = f"{name_of(values)}"
        cases.add(label, op(name, sizes=[4], axes=[0], norm=Atom("backward")), [values], wanted, "summed")
    for name, function, mlx in (("fftshift", np.fft.fftshift, mx.fft.fftshift), ("ifftshift", np.fft.ifftshift, mx.fft.ifftshift)):
        for shape, axes in (((6,), [0]), ((5,), [0]), ((4, 5), [0, 1]), ((4, 5), [-1]), ((2, 3, 5), [1, 2])):
            for dtype in ("f32", "c64", "s32"):
                values = noise(shape, dtype)
                cases.add(f"{dtype} {list(shape)} {axes}", op(name, axes=axes), [values], function(values, axes), mlx=lambda x: mlx(x, axes))
