"""The Python side of bench/products: for each line of input, a type, it prints the milliseconds of one product."""

import sys
import time

import mlx.core as mx

mx.set_default_device(mx.cpu)
matrices = {}

for line in sys.stdin:
    name = line.strip()
    dtype = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}[name]
    if name not in matrices:
        matrices[name] = mx.random.normal((1024, 1024), key=mx.random.key(1)).astype(dtype)
        mx.eval(matrices[name])
    a = matrices[name]
    start = time.perf_counter()
    mx.eval(a @ a)
    print((time.perf_counter() - start) * 1000, flush=True)
