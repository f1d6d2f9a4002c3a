"""PyTorch's side of the parts `operations` and `training` on a GPU: eager and by way of torch.compile."""

import os
import platform
import sys

import torch
from safetensors.torch import load_file

import server
import torch_operations
import torch_training
from server import Case, evenly

DEVICE = {"cpu": "cpu", "gpu": "cuda"}[sys.argv[1]]

# Products and convolutions of f32 are in f32, as ours.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

OPERATIONS = torch_operations.table(torch)
loaded = {}


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def load(file):
    """The arrays of a file, which several cases have in turn."""
    version = os.stat(file).st_mtime_ns
    if loaded.get("version") != (file, version):
        loaded.update(version=(file, version), arrays=load_file(file, device=DEVICE))
    return loaded["arrays"]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def sample(result):
    y = torch.real(result) if result.is_complex() else result
    y = y.reshape(-1)
    return y[torch.tensor(evenly(y.numel()), device=y.device)].float().tolist()


def operation(file, name, inputs, links, compiled, waits):
    """`links` runs of an operation, and a wait after each or at the end."""
    function, links = OPERATIONS.get(name), int(links)
    if not function:
        return None
    arrays = load(file)
    arguments = [arrays[input] for input in inputs.split(",")]
    if compiled == "true":
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False)

    def run():
        for _ in range(links):
            function(*arguments)
            if waits == "each":
                wait()
        if waits == "end":
            wait()

    run()
    return Case(run, links, lambda: sample(first(function(*arguments))))


def peak(run):
    wait()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait()
    return max(torch.cuda.max_memory_allocated() - held, 0)


def training(**options):
    return torch_training.training(DEVICE, wait, peak, **options)


def tidy():
    loaded.clear()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


versions = {"Python": platform.python_version(), "PyTorch": torch.__version__}
server.serve({"operation": operation, "training": training}, versions, peak, tidy)
