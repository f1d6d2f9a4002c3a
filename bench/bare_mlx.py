"""What the models of bench/decoder and bench/encoder in bare MLX share: weights from a safetensors file, and how they are run."""

import sys

import mlx.core as mx

import peer

mx.set_default_device(mx.cpu)
weights = mx.load(sys.argv[1])
blocks, heads = int(sys.argv[2]), int(sys.argv[3])
mx.eval(list(weights.values()))


def serve(model, name, argument):
    def run():
        result = model(argument)
        mx.eval(result)
        return result

    peer.serve(run, lambda path, result: mx.save_safetensors(path, {name: result}))
