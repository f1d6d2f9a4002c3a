"""NumPy's side of the parts `operations` and `small`, on the CPU."""

import platform

import numpy as np
from safetensors.numpy import load_file

import operations
import server
import small
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

    return Case(run, links, lambda: sample(np.real(function(*arguments))))


def sample(y):
    y = np.asarray(y, np.float32).reshape(-1)
    return y[evenly(y.size)].tolist()


def small_case(function, arguments, links):
    links = int(links)

    def run():
        for _ in range(links):
            function(*arguments)

    return Case(run, links, lambda: sample(function(*arguments)))


def small_operation(file, name, links):
    function = small.operations(np).get(name)
    return function and small_case(function, small.inputs(file), links)


def counted(file, count, steps, links):
    (x,), steps = small.inputs(file), int(steps)
    step = small.steps(np)[int(count), x.dtype.kind]
    x = x * 0 if count == "0" else x

    def function(x):
        for _ in range(steps):
            x = step(x)
        return x

    return small_case(function, [x], links)


def conditional(file, name, links):
    start, condition, step = small.conditional(np)[name]

    def function(x):
        x, count = start(x), 0
        while condition(x):
            x, count = step(x), count + 1
        return count

    return small_case(function, small.inputs(file), links)


kinds = {f.__name__: f for f in (operation, small_operation, counted, conditional)}
server.serve(kinds, {"Python": platform.python_version(), "NumPy": np.__version__})
