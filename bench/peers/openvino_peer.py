"""OpenVINO's side of the suite, on the CPU: the graph of onnx_models.py in f32, in bf16 where the processor has it, and
with matrices of 8-bit integers, whose left operands OpenVINO quantizes while it runs where the processor has VNNI."""

import tempfile
from pathlib import Path

import openvino
from safetensors.numpy import load_file

import onnx_models
import server
from server import Case, evenly

core = openvino.Core()


def encoder(file, inputs, blocks, heads, type, threads):
    if type == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": int(threads),
        # The default is bf16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "bf16" if type == "bf16" else "f32",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "encoder.onnx")
        onnx_models.encoder(file, inputs, blocks, heads, path, int8=type == "int8")
        request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
    given = load_file(inputs)

    def run():
        return request.infer(given, share_inputs=True)[0]

    def sample():
        y = run().reshape(-1)
        return y[evenly(y.size)].tolist()

    return Case(run, sample=sample)


server.serve({"encoder": encoder}, {"version": openvino.__version__.split("-")[0]})
