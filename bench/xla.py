"""What the models of bench/decoder and bench/encoder in XLA share: weights from a safetensors file, and how they are run."""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

import peer

weights = {name: jnp.asarray(array) for name, array in load_file(sys.argv[1]).items()}
blocks, heads = int(sys.argv[2]), int(sys.argv[3])


def serve(model, name, *arguments):
    compiled = jax.jit(model)
    peer.serve(
        lambda: compiled(*arguments).block_until_ready(),
        lambda path, result: save_file({name: np.asarray(result, np.float32)}, path),
    )
