"""Types, terms and files: what every family of cases needs."""

import math
import zlib

import ml_dtypes
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)

bf16 = ml_dtypes.bfloat16

# Our names, NumPy's types, MLX's types.
DTYPES = {
    "bool": (np.dtype(np.bool_), mx.bool_),
    "u8": (np.dtype(np.uint8), mx.uint8),
    "u16": (np.dtype(np.uint16), mx.uint16),
    "u32": (np.dtype(np.uint32), mx.uint32),
    "u64": (np.dtype(np.uint64), mx.uint64),
    "s8": (np.dtype(np.int8), mx.int8),
    "s16": (np.dtype(np.int16), mx.int16),
    "s32": (np.dtype(np.int32), mx.int32),
    "s64": (np.dtype(np.int64), mx.int64),
    "f16": (np.dtype(np.float16), mx.float16),
    "bf16": (np.dtype(bf16), mx.bfloat16),
    "f32": (np.dtype(np.float32), mx.float32),
    "f64": (np.dtype(np.float64), mx.float64),
    "c64": (np.dtype(np.complex64), mx.complex64),
}
NAMES = {numpy: name for name, (numpy, _) in DTYPES.items()}
MLX_NAMES = {mlx: name for name, (_, mlx) in DTYPES.items()}

ALL = list(DTYPES)
UNSIGNED = ["u8", "u16", "u32", "u64"]
SIGNED = ["s8", "s16", "s32", "s64"]
INTS = UNSIGNED + SIGNED
HALF = ["f16", "bf16"]
FLOATS = ["f16", "bf16", "f32", "f64"]
REAL = ["bool"] + INTS + FLOATS
INEXACT = FLOATS + ["c64"]

NAN, INF = math.nan, math.inf


def np_dtype(name):
    return DTYPES[name][0]


def mx_dtype(name):
    return DTYPES[name][1]


def name_of(array):
    return NAMES[array.dtype]


def arr(values, dtype, shape=None):
    """Numbers as an array of the type, floats rounded to it, integers wrapped to its width."""
    values = np.asarray(values)
    kind = np_dtype(dtype)
    if shape is not None:
        values = values.reshape(shape)
    if dtype in INTS and values.dtype.kind in "iu":
        return values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).astype(kind)
    with np.errstate(all="ignore"):
        return values.astype(kind)


def wide(array):
    """The same numbers in the type that references are computed in."""
    if name_of(array) == "c64":
        return array.astype(np.complex128)
    if name_of(array) in FLOATS:
        return array.astype(np.float64)
    return array


def extremes(dtype):
    """The integers at which a type's arithmetic turns over."""
    info = np.iinfo(np_dtype(dtype))
    inner = [0, 1, 2, 3, 7, info.max // 2, info.max - 1, info.max]
    if info.min < 0:
        inner += [-1, -2, -7, info.min + 1, info.min]
    return np.array(inner, np_dtype(dtype))


def rng_for(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def noise(shape, dtype, low=-2.0, high=2.0, key=0):
    """Seeded numbers: uniform floats, integers from a small range, fair coins."""
    rng = rng_for(tuple(shape), dtype, low, high, key)
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype in INTS:
        info = np.iinfo(np_dtype(dtype))
        low, high = max(int(math.floor(low * 4)), info.min), min(int(math.ceil(high * 4)), info.max)
        return np.asarray(rng.integers(low, high, shape, endpoint=True)).astype(np_dtype(dtype))
    values = rng.uniform(low, high, shape)
    if dtype == "c64":
        values = values + 1j * rng.uniform(low, high, shape)
    return np.asarray(values).astype(np_dtype(dtype))


# ---- MLX ----


def to_mx(array):
    if array is None:
        return None
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    dtype = mx_dtype(name_of(array))
    if array.size == 0:
        return mx.zeros(array.shape, dtype)
    flat = mx.array(np.frombuffer(array.tobytes(), np.uint8))
    if name_of(array) == "bool":
        return flat.astype(mx.bool_).reshape(array.shape)
    if name_of(array) == "u8":
        return flat.reshape(array.shape)
    return mx.view(flat, dtype).reshape(array.shape)


def from_mx(array):
    name = MLX_NAMES[array.dtype]
    shape = tuple(array.shape)
    if array.size == 0:
        return np.zeros(shape, np_dtype(name))
    flat = mx.contiguous(array).reshape((-1,))
    if name == "bool":
        flat = flat.astype(mx.uint8)
    data = np.array(mx.view(flat, mx.uint8)).tobytes()
    return np.frombuffer(data, np_dtype(name)).reshape(shape).copy()


def run_mx(function, inputs):
    """What MLX gives. It may write a result over an operand that nobody holds: says so if that changes the result."""
    kept = [to_mx(array) for array in inputs]
    mx.eval([array for array in kept if array is not None])
    first = _outputs(function(*kept))
    mx.eval(first)
    second = _outputs(function(*[to_mx(array) for array in inputs]))
    mx.eval(second)
    first, second = [from_mx(output) for output in first], [from_mx(output) for output in second]
    if any(a.tobytes() != b.tobytes() for a, b in zip(first, second, strict=True)):
        print(f"over its operand MLX gives {second}, else {first}, of {inputs}")
    return first


def _outputs(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


# ---- terms ----

RESERVED = set(
    "after and andalso band begin bnot bor bsl bsr bxor case catch cond div end fun if let maybe not of or orelse "
    "receive rem try when xor else".split()
)


class Atom(str):
    """A string that is an atom in the manifest."""


def op(name, **attributes):
    """An operation as the native crate decodes it."""
    if not attributes:
        return Atom(name)
    return (Atom(name), attributes)


def term(value):
    if value is None:
        return "nil"
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, Atom):
        return f"'{value}'" if value in RESERVED else str(value)
    if isinstance(value, str):
        return '<<"' + value.replace("\\", "\\\\").replace('"', '\\"') + '">>'
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        text = repr(float(value))
        if "e" in text:
            mantissa, exponent = text.split("e")
            return (mantissa if "." in mantissa else mantissa + ".0") + "e" + exponent
        return text
    if isinstance(value, tuple):
        return "{" + ",".join(term(item) for item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(term(item) for item in value) + "]"
    if isinstance(value, dict):
        return "#{" + ",".join(f"{term(Atom(k))}=>{term(v)}" for k, v in value.items()) + "}"
    raise TypeError(f"no term for {value!r}")


# How far MLX may be from the reference before that is printed. Only a report: what the tests allow is in tolerance.ex.
REPORT = {"f16": 8e-3, "bf16": 6.4e-2, "f32": 1e-5, "f64": 1e-10, "c64": 1e-5}


class Cases:
    """The cases of one family, and the elements they point at."""

    def __init__(self, family):
        self.family = family
        self.lines = []
        self.names = set()
        self.blob = bytearray()
        self.places = {}
        self.counts = {}

    def _place(self, array):
        if array is None:
            return None
        array = np.asarray(array)
        data = array.astype(array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype)
        data = np.ascontiguousarray(data).tobytes()
        offset = self.places.get(data)
        if offset is None:
            # A test's inputs are often parts of others'.
            offset = self.blob.find(data) if len(data) >= 16 else -1
            if offset < 0:
                offset = len(self.blob)
                self.blob += data
            self.places[data] = offset
        return (Atom(name_of(array)), list(array.shape), offset, len(data))

    def add(self, label, operation, inputs, outputs, tolerance="exact", form="values", mlx=None, mlx_differs=None):
        """One case. `outputs` None takes MLX's own; `mlx` computes the same with MLX, `mlx_differs` says why it cannot
        agree."""
        name = operation[0] if isinstance(operation, tuple) else operation
        full = f"{name}/{label}" if label else str(name)
        if full in self.names:
            raise ValueError(f"two cases are named {full}")
        self.names.add(full)
        inputs = [None if array is None else np.asarray(array) for array in inputs]
        theirs = None if mlx is None else run_mx(mlx, inputs)
        if outputs is None:
            outputs = theirs
        outputs = [np.asarray(output) for output in (outputs if isinstance(outputs, list) else [outputs])]
        if theirs is not None and form == "values" and mlx_differs is None:
            self._compare(full, outputs, theirs)
        tolerance = Atom(tolerance) if isinstance(tolerance, str) else tuple(float(t) for t in tolerance)
        case = {
            "name": full,
            "op": operation,
            "inputs": [self._place(array) for array in inputs],
            "outputs": [self._place(array) for array in outputs],
            "tolerance": tolerance,
        }
        if form != "values":
            case["form"] = Atom(form) if isinstance(form, str) else form
        self.lines.append(term(case) + ".\n")
        self.counts[str(name)] = self.counts.get(str(name), 0) + 1

    def like_mlx(self, label, operation, inputs, compute, mlx, tolerance="exact", **more):
        """A case whose values are `compute` of the inputs in float64 and whose types are MLX's."""
        types = [name_of(output) for output in run_mx(mlx, [np.asarray(a) if a is not None else None for a in inputs])]
        with np.errstate(all="ignore"):
            values = compute(*[None if a is None else wide(np.asarray(a)) for a in inputs])
        values = values if isinstance(values, (list, tuple)) else [values]
        outputs = [arr(value, dtype) for value, dtype in zip(values, types, strict=True)]
        self.add(label, operation, inputs, outputs, tolerance, mlx=mlx, **more)

    def _compare(self, name, ours, theirs):
        for index, (want, have) in enumerate(zip(ours, theirs, strict=True)):
            if want.dtype != have.dtype or want.shape != have.shape:
                print(f"{name}: output {index} is {name_of(want)}{want.shape}, MLX gives {name_of(have)}{have.shape}")
                continue
            limit = REPORT.get(name_of(want), 0.0)
            with np.errstate(all="ignore"):
                a, b = wide(want), wide(have)
                if name_of(want) in INEXACT:
                    size = np.abs(a[np.isfinite(a)])
                    near = limit * np.maximum(np.mean(size) if size.size else 0.0, np.abs(a))
                    same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= near)
                else:
                    same = a == b
            if not np.all(same):
                i = int(np.argmin(np.ravel(same)))
                print(f"{name}: element {i} is {np.ravel(want)[i]!r}, MLX gives {np.ravel(have)[i]!r}")

    def write(self, folder):
        head = f"%% Made by test/golden/generate.py, family {self.family}.\n"
        manifest = head + "".join(self.lines)
        (folder / f"{self.family}.terms").write_text(manifest)
        (folder / f"{self.family}.bin").write_bytes(bytes(self.blob))
        print(f"{self.family}: {len(self.lines)} cases of {len(self.counts)} operations, {len(manifest)} + {len(self.blob)} bytes")
        return len(self.lines)
