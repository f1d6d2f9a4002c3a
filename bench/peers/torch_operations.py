"""The operations of bench/suite/models/operation.ex in PyTorch. What it lacks is not in the table."""


def table(torch):
    F = torch.nn.functional

    def quotient(i, j):
        return torch.div(i, j, rounding_mode="trunc")

    def softmax(x):
        e = torch.exp(x - x.amax(1, keepdim=True))
        return e / e.sum(1, keepdim=True)

    def conv(images, kernels):
        return F.conv2d(images, kernels, padding="same")

    def pool(images):
        return F.max_pool2d(images, 2)

    def gradients(function, *arguments):
        arguments = [argument.detach().requires_grad_() for argument in arguments]
        return torch.autograd.grad(function(*arguments).sum(), arguments)

    def window_sum(x):
        # The divisor makes the mean the sum.
        return F.avg_pool2d(x[None], 3, stride=1, divisor_override=1)[0]

    def median(x):
        sorted, n = x.sort(1)[0], x.shape[1]
        return (sorted[:, (n - 1) // 2] + sorted[:, n // 2]) / 2

    unary = "abs floor ceil exp expm1 sin cos tan tanh sigmoid atan erf log log1p sqrt rsqrt asin bitwise_not"
    operations = {name: getattr(torch, name) for name in unary.split()}
    return operations | {
        "negate": torch.neg,
        "sign": torch.sign,
        "round": lambda x: torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x)),
        "cbrt": lambda x: torch.copysign(torch.abs(x) ** (1 / 3), x),
        "is_nan": torch.isnan,
        "clip": lambda x: torch.clamp(x, -0.5, 0.5),
        "f32 to s32": lambda x: x.to(torch.int32),
        "s32 to f32": lambda i: i.to(torch.float32),
        "f32 to bf16": lambda x: x.to(torch.bfloat16),
        "u8 to f32": lambda u: u.to(torch.float32),
        "add": torch.add,
        "add a row": torch.add,
        "add a column": torch.add,
        "multiply": torch.mul,
        "divide": torch.div,
        "max": torch.maximum,
        "pow": torch.pow,
        "atan2": torch.atan2,
        "remainder": torch.fmod,
        "multiply s32": torch.mul,
        "quotient s32": quotient,
        "remainder s32": torch.fmod,
        "bitwise_and": torch.bitwise_and,
        "left_shift": lambda i, u: torch.bitwise_left_shift(i, (u & 7).to(torch.int32)),
        "less": torch.lt,
        "logical_and": torch.logical_and,
        "select": lambda u, x, y: torch.where(u != 0, x, y),
        "add bf16": torch.add,
        "sum": torch.sum,
        "sum of columns": lambda x: x.sum(0),
        "sum of rows": lambda x: x.sum(1),
        "mean of rows": lambda x: x.mean(1),
        "variance": lambda x: x.var(unbiased=False),
        "variance of columns": lambda x: x.var(0, unbiased=False),
        "product of rows": lambda x: x.prod(1),
        "reduce_max": torch.amax,
        "reduce_max of columns": lambda x: x.amax(0),
        "reduce_max of rows": lambda x: x.amax(1),
        "sum s32": lambda i: i.sum(dtype=torch.int32),
        "all": torch.all,
        "argmax of columns": lambda x: x.argmax(0),
        "argmax of rows": lambda x: x.argmax(1),
        "logsumexp of rows": lambda x: torch.logsumexp(x, 1),
        "softmax": softmax,
        "cumulative_sum of columns": lambda x: x.cumsum(0),
        "cumulative_sum of rows": lambda x: x.cumsum(1),
        "cumulative_max of rows": lambda x: x.cummax(1)[0],
        "sort": lambda x: x.sort(1)[0],
        "argsort": lambda x: x.sort(dim=1, stable=True)[1],
        "top_k": lambda x: x.topk(min(50, x.shape[1]), 1)[0],
        "median of rows": median,
        "take rows": lambda x, at: x[at],
        "take columns": lambda x, at: x[:, at],
        "gather": lambda x, pairs: x[pairs[:, 0], pairs[:, 1]],
        "take_along_axis": lambda x, along: torch.take_along_dim(x, along.long(), 1),
        "indexed_add": lambda x, at, y: x.index_add(0, at[:, 0], y),
        "indexed_put": lambda x, pairs, values: x.index_put((pairs[:, 0].long(), pairs[:, 1].long()), values),
        "concatenate": lambda x, y: torch.cat([x, y], 1),
        "pad": lambda x: F.pad(x, (2, 2, 1, 1)),
        "reverse": lambda x: x.flip(0, 1),
        "tile": lambda x: x.tile(2, 2),
        "transpose": lambda x: x.T + 1,
        "slice": lambda x: x[1:-1, 1:-1] + 1,
        "dot": torch.matmul,
        "conv": conv,
        "conv backward": lambda images, kernels: gradients(conv, images, kernels),
        "window_max": pool,
        "window_max backward": lambda images: gradients(pool, images),
        "window_sum": window_sum,
        "fft": torch.fft.fft,
        "cholesky": torch.linalg.cholesky,
        "qr": lambda a: torch.abs(torch.linalg.qr(a)[1]),
        "svd": torch.linalg.svdvals,
        # Nx has the largest first.
        "eigh": lambda a: torch.linalg.eigh(a)[0].flip(0),
        "solve": torch.linalg.solve,
        "triangular_solve": lambda a, b: torch.linalg.solve_triangular(a, b, upper=False),
        "determinant": torch.linalg.det,
        "random uniform": lambda x: torch.rand_like(x),
        "random normal": lambda x: torch.randn_like(x),
        "random randint": lambda x: torch.randint_like(x, 0, 100, dtype=torch.int32),
    }
