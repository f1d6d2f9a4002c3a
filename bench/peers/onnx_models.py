"""The suite's encoder as an ONNX graph, on the names that its checkpoint has: what mlx_models.py is in MLX. Attention
is products and a softmax, and a dense layer a product and an addition, in the form that the runtimes' own passes find
and fuse."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 20


class Graph:
    """Nodes and constants, in order; a method or `op` returns the name of its result."""

    def __init__(self):
        self.nodes, self.constants, self.shared = [], [], {}

    def op(self, kind, *inputs, domain="", **attributes):
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, array, name=None):
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def shape(self, *sizes):
        if sizes not in self.shared:
            self.shared[sizes] = self.constant(np.array(sizes, np.int64))
        return self.shared[sizes]

    def scalar(self, number):
        return self.constant(np.array(number, np.float32))


def encoder(file, inputs, blocks, heads, path, int8=False):
    """Writes the encoder for inputs of the file's shape. `int8` stores the matrices as 8-bit integers, with a scale for
    each output."""
    w, (batch, length) = load_file(file), load_file(inputs)["input_ids"].shape
    size = w["embeddings.LayerNorm.weight"].shape[0]
    blocks, heads = int(blocks), int(heads)
    dims = size // heads
    g = Graph()

    def matrix(name):
        array = w[f"{name}.weight"]
        if not int8:
            return g.constant(array.T, f"{name}.weight")
        scale = (np.abs(array).max(1) / 127).astype(np.float32)
        quantized = g.constant(np.rint(array / scale[:, None]).astype(np.int8), f"{name}.weight")
        return g.op("Transpose", g.op("DequantizeLinear", quantized, g.constant(scale), axis=0), perm=[1, 0])

    def dense(x, name):
        return g.op("Add", g.op("MatMul", x, matrix(name)), g.constant(w[f"{name}.bias"], f"{name}.bias"))

    def norm(x, name):
        parameters = [g.constant(w[f"{name}.{part}"], f"{name}.{part}") for part in ("weight", "bias")]
        return g.op("LayerNormalization", x, *parameters, axis=-1, epsilon=1e-12)

    def split(x, axes):
        return g.op("Transpose", g.op("Reshape", x, g.shape(0, 0, heads, dims)), perm=axes)

    def attention(x, name, bias):
        q, k, v = (dense(x, f"{name}.self.{part}") for part in ("query", "key", "value"))
        scores = g.op("MatMul", split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]))
        scores = g.op("Add", g.op("Div", scores, g.scalar(dims**0.5)), bias)
        out = g.op("MatMul", g.op("Softmax", scores, axis=-1), split(v, [0, 2, 1, 3]))
        out = g.op("Reshape", g.op("Transpose", out, perm=[0, 2, 1, 3]), g.shape(0, 0, size))
        return dense(out, f"{name}.output.dense")

    mask = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    # 0 where a token is seen, and what no score outweighs where it is not.
    seen = g.op("Unsqueeze", g.op("Unsqueeze", "attention_mask", g.shape(1)), g.shape(2))
    hidden = g.op("Sub", g.scalar(1), g.op("Cast", seen, to=TensorProto.FLOAT))
    bias = g.op("Mul", hidden, g.scalar(-10000))
    table = lambda name: w[f"embeddings.{name}_embeddings.weight"]
    words = g.op("Gather", g.constant(table("word"), "words"), "input_ids")
    x = g.op("Add", words, g.constant(table("position")[:length] + table("token_type")[0], "positions"))
    x = norm(x, "embeddings.LayerNorm")
    for i in range(blocks):
        name = f"encoder.layer.{i}"
        x = norm(g.op("Add", attention(x, f"{name}.attention", bias), x), f"{name}.attention.output.LayerNorm")
        h = dense(g.op("Gelu", dense(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = norm(g.op("Add", h, x), f"{name}.output.LayerNorm")
    weights = g.op("Unsqueeze", mask, g.shape(2))
    sums = [g.op("ReduceSum", y, g.shape(1), keepdims=0) for y in (g.op("Mul", x, weights), weights)]
    mean = g.op("Div", *sums)
    length_of = g.op("Sqrt", g.op("ReduceSum", g.op("Mul", mean, mean), g.shape(1)))
    g.nodes.append(helper.make_node("Div", [mean, length_of], ["embedding"], name="embedding"))

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "encoder",
        [value(name, TensorProto.INT32, [batch, length]) for name in ("input_ids", "attention_mask")],
        [value("embedding", TensorProto.FLOAT, [batch, size])],
        g.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
