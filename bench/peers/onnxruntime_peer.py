"""ONNX Runtime's side of the suite, on the CPU: the graph of onnx_models.py, fused by the optimizer for transformers of
its package, in f32 and quantized dynamically to 8-bit integers by its own tool."""

import logging
import platform
import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model
from safetensors.numpy import load_file

import onnx_models
import server
from server import Case, evenly

logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(3)


def quantize(path):
    """Weights of unsigned integers where the processor has no VNNI: the sums of AVX2's products of signed and unsigned
    8-bit integers saturate."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    cpuinfo = Path("/proc/cpuinfo")
    signed = not x86 or (cpuinfo.exists() and "vnni" in cpuinfo.read_text())
    quantize_dynamic(
        path,
        path,
        op_types_to_quantize=["MatMul", "Attention"],
        per_channel=signed,
        weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def encoder(file, inputs, blocks, heads, type, threads):
    if type not in ("f32", "int8"):
        return None
    size = load_file(file)["embeddings.LayerNorm.weight"].shape[0]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "encoder.onnx")
        onnx_models.encoder(file, inputs, blocks, heads, path)
        fused = optimize_model(path, model_type="bert", num_heads=int(heads), hidden_size=size, opt_level=0)
        fused.save_model_to_file(path)
        if type == "int8":
            quantize(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = load_file(inputs)

    def run():
        return session.run(None, given)[0]

    def sample():
        y = run().reshape(-1)
        return y[evenly(y.size)].tolist()

    return Case(run, sample=sample)


server.serve({"encoder": encoder}, {"version": onnxruntime.__version__, "ONNX": onnx.__version__})
