"""NumPy's side of the part `operations`, on the CPU."""

import platform

import numpy as np
from safetensors.numpy import load_file

import operations
import server
from server import Case, evenly

TABLE = operations.table(np)


def operation(file, name, inputs, links):
    function = TABLE.get(name)
    if not function:
        return None
    arrays, links = load_file(file), int(links)
    arguments = [arrays[input] for input in inputs.split(",")]

    def run():
        for _ in range(links):
            function(*arguments)

    def sample():
        y = np.asarray(np.real(function(*arguments)), np.float32).reshape(-1)
        return y[evenly(y.size)].tolist()

    return Case(run, links, sample)


server.serve({"operation": operation}, {"Python": platform.python_version(), "NumPy": np.__version__})
