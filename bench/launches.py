"""What operations of one token cost in Python MLX on CUDA: building a chain of each, submitting it, and all until it is
computed, in microseconds an operation, medians of 7. `python3 bench/launches.py` with MLX's CUDA build."""

import time

import mlx.core as mx

SIZE, LENGTH, CHAIN = 1024, 512, 200
mx.set_default_device(mx.gpu)


def normal(*shape):
    return mx.random.normal(shape).astype(mx.bfloat16)


def report(name, operation, start, chain=CHAIN):
    def run():
        x = start
        for _ in range(chain):
            x = operation(x)
        return x

    for _ in range(3):
        mx.eval(run())
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        x = run()
        built = time.perf_counter()
        mx.async_eval(x)
        submitted = time.perf_counter()
        mx.eval(x)
        times.append((built - begin, submitted - built, time.perf_counter() - begin))
    build, submit, whole = (sorted(column)[3] / chain * 1e6 for column in zip(*times))
    print(f"{name:36s} build {build:6.2f}   submit {submit:6.2f}   all {whole:6.2f}", flush=True)


matrix = normal(SIZE, SIZE) / 32
transposed = mx.contiguous(matrix.T)
row = normal(1, SIZE)
weight = row[0]
cache, update = mx.zeros((1, LENGTH, 16, 128), mx.bfloat16), normal(1, 1, 16, 128)
query = normal(1, 16, 1, 128)
place, mask = mx.array([0, 5, 0, 0]), (mx.arange(LENGTH) < 200).reshape(1, 1, 1, LENGTH)
logits = normal(1, 151936)
mx.eval(matrix, transposed, row, weight, cache, update, query, place, mask, logits)
keys = cache.transpose(0, 2, 1, 3)

copy = mx.fast.cuda_kernel(
    name="copied",
    input_names=["x"],
    output_names=["out"],
    source="int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < SIZE) out[i] = x[i];",
)


def own(x):
    return copy(
        inputs=[x],
        template=[("SIZE", SIZE)],
        grid=(SIZE, 1, 1),
        threadgroup=(256, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )[0]


def updated(x):
    x[0:1, 5:6] = update
    return x


report("sum of two arrays", lambda x: x + row, row)
report("two views", lambda x: x.reshape(SIZE, 1).reshape(1, SIZE), row)
report("product, matrix in rows", lambda x: x @ matrix, row)
report("product, matrix transposed", lambda x: x @ transposed.T, row)
report("product and sum", lambda x: mx.addmm(row, x, matrix), row)
report("rms_norm", lambda x: mx.fast.rms_norm(x, weight, 1e-6), row)
report("kernel of one's own", own, row)
report("slice update, place on the host", updated, mx.array(cache))
report("slice update, place on the GPU", lambda x: mx.slice_update(x, update, place, axes=(0, 1, 2, 3)), cache)
attend = mx.fast.scaled_dot_product_attention
report("attention, mask of booleans", lambda q: attend(q, keys, keys, scale=0.1, mask=mask), query)
report("attention, no mask", lambda q: attend(q, keys, keys, scale=0.1), query)
report("argmax of 151,936", lambda x: x + mx.argmax(x, axis=-1, keepdims=True).astype(x.dtype) * 0, logits, 50)
