"""Convolutions and windows, by loops over the definition."""

import itertools

import mlx.core as mx
import numpy as np

from .common import *


def pad_or_crop(x, axis, low, high, value=0):
    x = np.take(x, np.arange(max(-low, 0), x.shape[axis] - max(-high, 0)), axis)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (max(low, 0), max(high, 0))
    return np.pad(x, widths, constant_values=value)


def conv(x, w, stride, low, high, kernel_dilation, input_dilation, groups, flip):
    """Batch, space…, channels by out, space…, in / groups. A correlation, unless `flip`."""
    space = x.ndim - 2
    for i in range(space):
        if input_dilation[i] > 1:
            shape = list(x.shape)
            shape[i + 1] = (shape[i + 1] - 1) * input_dilation[i] + 1
            spread = np.zeros(shape, x.dtype)
            spread[(slice(None),) * (i + 1) + (slice(None, None, input_dilation[i]),)] = x
            x = spread
        x = pad_or_crop(x, i + 1, low[i], high[i])
    if flip:
        w = np.flip(w, tuple(range(1, space + 1)))
    kernel = w.shape[1:-1]
    out_space = [(x.shape[i + 1] - (kernel[i] - 1) * kernel_dilation[i] - 1) // stride[i] + 1 for i in range(space)]
    out = np.zeros([x.shape[0], *out_space, w.shape[0]], np.float64)
    inside, outside = x.shape[-1] // groups, w.shape[0] // groups
    for place in np.ndindex(*out_space):
        where = tuple(slice(p * s, p * s + (k - 1) * d + 1, d) for p, s, k, d in zip(place, stride, kernel, kernel_dilation))
        for g in range(groups):
            part = x[(slice(None), *where, slice(g * inside, (g + 1) * inside))]
            weight = w[g * outside : (g + 1) * outside]
            axes = list(range(1, space + 2))
            out[(slice(None), *place, slice(g * outside, (g + 1) * outside))] = np.tensordot(part, weight, (axes, axes))
    return out


def add_conv(cases):
    table = [
        # input, weight, stride, low, high, kernel dilation, input dilation, groups, flip
        ((1, 6, 1), (1, 3, 1), [1], [0], [0], [1], [1], 1, False),
        ((2, 7, 4), (6, 3, 4), [2], [1], [2], [1], [1], 1, False),
        ((2, 7, 4), (6, 3, 2), [1], [1], [1], [2], [1], 2, False),
        ((2, 7, 4), (4, 3, 1), [1], [2], [0], [1], [1], 4, False),
        ((1, 5, 2), (3, 2, 2), [1], [1], [2], [1], [2], 1, True),
        ((1, 5, 2), (3, 1, 2), [3], [0], [0], [1], [1], 1, False),
        ((1, 6, 2), (3, 2, 2), [1], [-1], [0], [1], [1], 1, False),
        ((1, 6, 2), (3, 2, 2), [2], [-1], [-2], [1], [2], 1, False),
        ((2, 5, 6, 3), (4, 3, 2, 3), [1, 1], [0, 0], [0, 0], [1, 1], [1, 1], 1, False),
        ((2, 5, 6, 3), (4, 3, 2, 3), [2, 1], [1, 0], [1, 2], [1, 2], [1, 1], 1, False),
        ((1, 5, 5, 4), (6, 3, 3, 2), [1, 2], [1, 1], [1, 1], [1, 1], [1, 1], 2, False),
        ((1, 4, 5, 4), (4, 2, 3, 2), [2, 2], [3, 2], [2, 1], [2, 1], [2, 2], 2, True),
        ((1, 4, 4, 2), (2, 1, 1, 2), [1, 1], [0, 0], [0, 0], [1, 1], [1, 1], 1, False),
        ((1, 4, 4, 16), (16, 3, 3, 16), [1, 1], [1, 1], [1, 1], [1, 1], [1, 1], 1, False),
        ((1, 3, 4, 3, 2), (2, 2, 2, 3, 2), [1, 2, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1], 1, False),
        ((1, 2, 3, 2, 2), (2, 2, 2, 2, 2), [1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1], [2, 1, 2], 1, True),
        ((0, 5, 2), (3, 2, 2), [1], [0], [0], [1], [1], 1, False),
    ]
    for x, w, stride, low, high, kernel_dilation, input_dilation, groups, flip in table:
        for dtype in FLOATS:
            arguments = (stride, low, high, kernel_dilation, input_dilation, groups, flip)
            names = ("stride", "padding_low", "padding_high", "kernel_dilation", "input_dilation", "groups", "flip")
            pair = [noise(x, dtype, -1, 1), noise(w, dtype, -1, 1, 1)]
            # MLX computes f64 in f32, or not at all.
            mlx = lambda a, b: mx.conv_general(a, b, stride, (low, high), kernel_dilation, input_dilation, groups, flip)
            cases.add(
                f"{dtype} {list(x)} {list(w)} {stride} {low} {high} {kernel_dilation} {input_dilation} {groups} {flip}",
                op("conv", **dict(zip(names, arguments))),
                pair,
                arr(conv(wide(pair[0]), wide(pair[1]), *arguments), dtype),
                "product",
                mlx=None if dtype == "f64" else mlx,
            )


def conv_transpose(x, w, stride, padding, dilation, output_padding, groups):
    """Each input element adds the kernel, scaled by it, at its place in the output."""
    space = x.ndim - 2
    kernel = w.shape[1:-1]
    full = [(x.shape[i + 1] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 + output_padding[i] for i in range(space)]
    out = np.zeros([x.shape[0], *full, w.shape[0]], np.float64)
    inside, outside = x.shape[-1] // groups, w.shape[0] // groups
    for place in np.ndindex(*x.shape[1:-1]):
        where = tuple(slice(p * s, p * s + (k - 1) * d + 1, d) for p, s, k, d in zip(place, stride, kernel, dilation))
        for g in range(groups):
            part = x[(slice(None), *place, slice(g * inside, (g + 1) * inside))]
            weight = w[g * outside : (g + 1) * outside]
            added = np.moveaxis(np.tensordot(part, weight, ([1], [weight.ndim - 1])), 1, -1)
            out[(slice(None), *where, slice(g * outside, (g + 1) * outside))] += added
    crop = tuple(slice(p, n - p) for p, n in zip(padding, full))
    return out[(slice(None), *crop)]


def add_conv_transpose(cases):
    table = [
        # input, weight, stride, padding, dilation, output padding, groups
        ((1, 4, 1), (1, 3, 1), [1], [0], [1], [0], 1),
        ((2, 4, 3), (2, 3, 3), [2], [1], [1], [1], 1),
        ((1, 4, 2), (2, 2, 2), [3], [0], [2], [0], 1),
        ((1, 4, 4), (4, 3, 2), [2], [1], [1], [0], 2),
        ((1, 3, 4, 2), (3, 2, 3, 2), [1, 2], [0, 1], [1, 1], [0, 1], 1),
        ((1, 3, 4, 4), (2, 3, 2, 2), [2, 1], [1, 0], [1, 2], [1, 0], 2),
        ((1, 2, 3, 2, 2), (2, 2, 2, 2, 2), [2, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], 1),
    ]
    by_space = {1: mx.conv_transpose1d, 2: mx.conv_transpose2d, 3: mx.conv_transpose3d}
    for x, w, stride, padding, dilation, output_padding, groups in table:
        for dtype in FLOATS:
            arguments = (stride, padding, dilation, output_padding, groups)
            names = ("stride", "padding", "dilation", "output_padding", "groups")

            def mlx(a, b):
                lists = [tuple(v) if len(v) > 1 else v[0] for v in arguments[:4]]
                return by_space[len(stride)](a, b, *lists, groups)

            pair = [noise(x, dtype, -1, 1), noise(w, dtype, -1, 1, 1)]
            cases.add(
                f"{dtype} {list(x)} {list(w)} {stride} {padding} {dilation} {output_padding} {groups}",
                op("conv_transpose", **dict(zip(names, arguments))),
                pair,
                arr(conv_transpose(wide(pair[0]), wide(pair[1]), *arguments), dtype),
                "product",
                mlx=None if dtype == "f64" else mlx,
            )


WINDOWS = [
    # shape, window, strides, low, high, dilation
    ((6,), [3], [1], [0], [0], [1]),
    ((6,), [3], [2], [1], [1], [1]),
    ((6,), [2], [1], [0], [2], [3]),
    ((4, 5), [2, 3], [1, 2], [0, 1], [1, 1], [1, 1]),
    ((4, 5), [2, 2], [2, 1], [1, 0], [0, 0], [2, 1]),
    ((4, 5), [1, 5], [1, 1], [0, 0], [0, 0], [1, 1]),
    ((2, 3, 4), [1, 2, 2], [1, 1, 2], [0, 1, 0], [0, 0, 0], [1, 1, 1]),
    ((2, 4, 4, 3), [1, 2, 2, 1], [1, 2, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]),
    ((6,), [3], [1], [-1], [-2], [1]),
    ((3,), [5], [1], [0], [0], [1]),
    ((3,), [2], [1], [3], [2], [1]),
    ((0, 4), [1, 2], [1, 1], [0, 0], [0, 0], [1, 1]),
]


def identity(reduction, dtype):
    if reduction == "sum":
        return 0
    if reduction == "prod":
        return 1
    least = reduction == "max"
    if dtype == "bool":
        return not least
    if dtype in INTS:
        info = np.iinfo(np_dtype(dtype))
        return info.min if least else info.max
    return -INF if least else INF


def all_windows(x, window, strides, dilation):
    outputs = [max((n - (k - 1) * d - 1) // s + 1, 0) for n, k, s, d in zip(x.shape, window, strides, dilation)]
    out = np.zeros(outputs + list(window), x.dtype)
    for place in np.ndindex(*outputs):
        where = tuple(slice(p * s, p * s + (k - 1) * d + 1, d) for p, s, k, d in zip(place, strides, window, dilation))
        out[place] = x[where]
    return out


def padded(x, low, high, value):
    for axis, (l, h) in enumerate(zip(low, high)):
        x = pad_or_crop(x, axis, l, h, value)
    return x


def add_windows(cases):
    functions = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}

    def reduce_case(label, values, reduction, window, strides, low, high, dilation):
        dtype = name_of(values)
        given = padded(wide(values), low, high, identity(reduction, dtype))
        windows = all_windows(given, window, strides, dilation)
        axes = tuple(range(values.ndim, 2 * values.ndim))
        more = dict(dtype=windows.dtype) if reduction in ("sum", "prod") else {}
        wanted = functions[reduction](windows, axis=axes, **more)
        operation = op(
            "window_reduce",
            reduction=Atom(reduction),
            window=window,
            strides=strides,
            padding_low=low,
            padding_high=high,
            dilation=dilation,
        )
        cases.add(label, operation, [values], arr(wanted, dtype), "summed" if reduction in ("sum", "prod") else "exact")

    for shape, window, strides, low, high, dilation in WINDOWS:
        for reduction in functions:
            label = f"f32 {reduction} {list(shape)} {window} {strides} {low} {high} {dilation}"
            reduce_case(label, noise(shape, "f32"), reduction, window, strides, low, high, dilation)
        values = noise(shape, "f32")
        if min(low + high) == 0 == max(low + high):
            operation = op("window_view", window=window, strides=strides, dilation=dilation)
            cases.add(f"f32 {list(shape)} {window} {strides} {dilation}", operation, [values], all_windows(values, window, strides, dilation))
    for dtype in REAL:
        for reduction in functions:
            if dtype == "bool" and reduction in ("sum", "prod"):
                continue
            values = noise((4, 5), dtype, -1, 1)
            reduce_case(f"{dtype} {reduction} padded", values, reduction, [2, 3], [1, 2], [1, 0], [0, 2], [1, 1])
        values = noise((3, 4), dtype)
        operation = op("window_view", window=[2, 2], strides=[1, 2], dilation=[1, 1])
        cases.add(dtype, operation, [values], all_windows(values, [2, 2], [1, 2], [1, 1]))
    for reduction in ("max", "min", "sum"):
        values = arr([1, NAN, 3, 4, -INF, 5], "f32")
        reduce_case(f"f32 {reduction} nan", values, reduction, [2], [1], [1], [0], [1])
    reduce_case("f32 scalar", arr(2.0, "f32"), "sum", [], [], [], [], [])


def add_window_scatter(cases):
    def scatter(values, source, init, reduction, window, strides, low, high):
        pick = np.argmax if reduction == "max" else np.argmin
        x = padded(wide(values), low, high, identity(reduction, name_of(values)))
        places = padded(np.arange(values.size).reshape(values.shape), low, high, -1)
        windows = all_windows(x, window, strides, [1] * x.ndim)
        where = all_windows(places, window, strides, [1] * x.ndim)
        out = np.full(values.size, wide(init))
        for place in np.ndindex(*source.shape):
            # Of the array's own elements: padding is never chosen, though it may equal them.
            own = np.ravel(where[place]) >= 0
            index = np.ravel(where[place])[own][pick(np.ravel(windows[place])[own])]
            out[index] += wide(source)[place]
        return arr(out.reshape(values.shape), name_of(source))

    for shape, window, strides, low, high in (
        ((6,), [2], [2], [0], [0]), ((6,), [3], [1], [1], [1]), ((4, 6), [2, 3], [2, 3], [0, 0], [0, 0]), ((4, 5), [2, 2], [1, 2], [1, 0], [0, 1]),
        ((1, 4, 4, 2), [1, 2, 2, 1], [1, 2, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0]), ((5,), [2], [3], [0], [0]),
    ):  # fmt: skip
        for reduction in ("max", "min"):
            for dtype in ("f32", "s32", "bf16", "u8"):
                # Small integers: equals are common, and the first of them is the one.
                values = noise(shape, dtype, -0.5, 0.5) if dtype in INTS else noise(shape, dtype)
                outputs = all_windows(padded(wide(values), low, high, 0), window, strides, [1] * len(shape)).shape[: len(shape)]
                source, init = noise(outputs, dtype, 0, 1, 1), arr(1, dtype)
                operation = op("window_scatter", reduction=Atom(reduction), window=window, strides=strides, padding_low=low, padding_high=high)
                label = f"{dtype} {reduction} {list(shape)} {window} {strides} {low} {high}"
                cases.add(label, operation, [values, source, init], scatter(values, source, init, reduction, window, strides, low, high), "rounded")


def add_choices(cases):
    """The last of equal elements, and padding that is `init` and may be chosen."""

    def scatter(values, source, init, reduction, window, strides, low, high, last, pads):
        fill = wide(init) if pads else identity(reduction, name_of(values))
        x = padded(wide(values), low, high, fill)
        places = padded(np.arange(values.size).reshape(values.shape), low, high, -1)
        windows = all_windows(x, window, strides, [1] * x.ndim)
        where = all_windows(places, window, strides, [1] * x.ndim)
        out = np.full(values.size, wide(init))
        for place in np.ndindex(*source.shape):
            numbers, at = np.ravel(windows[place]), np.ravel(where[place])
            if not pads:
                numbers, at = numbers[at >= 0], at[at >= 0]
            extreme = numbers.max() if reduction == "max" else numbers.min()
            chosen = at[np.flatnonzero(numbers == extreme)[-1 if last else 0]]
            if chosen >= 0:
                out[chosen] += wide(source)[place]
        return arr(out.reshape(values.shape), name_of(source))

    for shape, window, strides, low, high in (
        ((7,), [3], [1], [1], [1]), ((4, 5), [2, 2], [1, 2], [1, 0], [0, 1]), ((1, 4, 4, 2), [1, 2, 2, 1], [1, 2, 2, 1], [0, 1, 0, 0], [0, 1, 0, 0]),
    ):  # fmt: skip
        for reduction in ("max", "min"):
            for dtype in ("f32", "s32", "f16", "u8"):
                for last, pads in ((True, False), (False, True), (True, True)):
                    # Whole numbers: equals are common, also of the padding.
                    values = noise(shape, dtype, -0.5, 0.5) if dtype in INTS else arr(np.round(wide(noise(shape, dtype))), dtype)
                    outputs = all_windows(padded(wide(values), low, high, 0), window, strides, [1] * len(shape)).shape[: len(shape)]
                    source, init = noise(outputs, dtype, 0, 1, 1), arr(1, dtype)
                    ties = Atom("last" if last else "first")
                    operation = op("window_scatter", reduction=Atom(reduction), window=window, strides=strides, padding_low=low, padding_high=high, ties=ties, pads_with_init=pads)
                    label = f"{dtype} {reduction} {list(shape)} {window} {strides} {low} {high} {'last' if last else 'first'}{' init' if pads else ''}"
                    want = scatter(values, source, init, reduction, window, strides, low, high, last, pads)
                    cases.add(label, operation, [values, source, init], want, "rounded")


def add(cases):
    add_conv(cases)
    add_conv_transpose(cases)
    add_windows(cases)
    add_window_scatter(cases)
    add_choices(cases)
