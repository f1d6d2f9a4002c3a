"""What the suite's Python peers share: commands on standard input, one a line, words with URL escapes; an answer each
that begins with "= ". EMLX.Bench.Peer is the other end."""

import sys
import time
from urllib.parse import quote_plus, unquote_plus


class Case:
    """Something to run: `run` computes it and waits for it. A sample's time is that of a run divided by `links`, or
    what `run` gives: the microseconds, or a tuple of several. `peak` gives bytes, where that is not of a run."""

    def __init__(self, run, links=1, sample=None, peak=None):
        self.run, self.links, self.sample, self.peak = run, links, sample, peak


def timed(case):
    start = time.perf_counter()
    microseconds = case.run()
    if isinstance(microseconds, tuple):
        return microseconds
    if not isinstance(microseconds, float):
        microseconds = (time.perf_counter() - start) * 1e6
    return [microseconds / case.links]


def serve(kinds, versions, peak=None, tidy=lambda: None):
    cases = {}

    def answer(command, words):
        if command == "versions":
            return [f"{name}={version}" for name, version in versions.items()]
        if command == "define":
            options = dict(word.split("=", 1) for word in words[1:])
            number = str(max(map(int, cases), default=0) + 1)
            case = kinds[words[0]](**options)
            # What a peer does not have.
            if case is None:
                return ["none"]
            cases[number] = case
            return [number]
        case = cases[words[0]]
        if command == "time":
            return timed(case)
        if command == "peak":
            return [case.peak() if case.peak else peak(case.run)]
        if command == "sample":
            return case.sample()
        if command == "drop":
            del cases[words[0]], case
            tidy()
            return []
        raise ValueError(f"{command} is not a command")

    for line in sys.stdin:
        command, *words = map(unquote_plus, line.split())
        try:
            print("= ok", *answer(command, words), flush=True)
        except Exception as error:
            print("= error", quote_plus(f"{type(error).__name__}: {error}"), flush=True)


def evenly(size, count=16):
    """The places in an array of `size` elements that a sample is taken from; as in EMLX.Bench.Inputs.sample."""
    count = min(count, size)
    return [i * (size // count) for i in range(count)]
