"""What the XLA sides of bench/decoder and bench/encoder share: weights read from a safetensors file, and the loop that runs a jitted
model once for each line of input."""

import json
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

TYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64, "U32": np.uint32}


def load(path):
    """The arrays of a safetensors file: eight bytes of length, a JSON header, the bytes."""
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], TYPES[entry["dtype"]])
            arrays[name] = jnp.asarray(values.reshape(entry["shape"]))
    return arrays


def save(path, name, array):
    values = np.asarray(array, np.float32)
    header = {name: {"dtype": "F32", "shape": values.shape, "data_offsets": [0, values.nbytes]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + values.tobytes())


def serve(model, name, *arguments):
    compiled = jax.jit(model)
    for line in sys.stdin:
        words = line.split()
        start = time.perf_counter()
        result = compiled(*arguments).block_until_ready()
        elapsed = (time.perf_counter() - start) * 1000
        if words[0] == "output":
            save(words[1], name, result)
        print(elapsed, flush=True)
