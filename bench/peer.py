"""What the Python sides of bench/decoder and bench/encoder share: the loop that runs a model once for each line of input and prints
the milliseconds. For the line "output" the result is saved to the file that follows."""

import sys
import time


def serve(run, save):
    for line in sys.stdin:
        words = line.split()
        start = time.perf_counter()
        result = run()
        elapsed = (time.perf_counter() - start) * 1000
        if words[0] == "output":
            save(words[1], result)
        print(elapsed, flush=True)
