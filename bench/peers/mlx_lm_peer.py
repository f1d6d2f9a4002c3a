"""mlx-lm's side of the suite: `python3 mlx_lm_peer.py cpu|gpu`. Its own models with the weights of the suite's
checkpoints, driven as its `generate_step` drives them: the next token's graph is submitted before this one's is read.
The prompt is taken in one piece, where `generate_step` takes the last token by itself. The libmlx is the one that the
NIF has (LD_LIBRARY_PATH)."""

import importlib
import json
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

import server
from server import Case

# mlx_lm's own module imports tokenizers, which its models do without.
packages = next(path for path in map(Path, sys.path) if (path / "mlx_lm" / "models").is_dir())
package = types.ModuleType("mlx_lm")
package.__path__ = [str(packages / "mlx_lm")]
sys.modules["mlx_lm"] = package

from mlx_lm.models import cache  # noqa: E402

mx.set_default_device(getattr(mx, sys.argv[1]))
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16}
STREAM = mx.new_stream(mx.default_device())


def load(folder, type, bits):
    """The model of a checkpoint in a type, and with `bits` other than 16 its matrices in so many bits."""
    config = json.loads((Path(folder) / "config.json").read_text())
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = {name: w.astype(DTYPES[type]) for name, w in mx.load(str(Path(folder) / "model.safetensors")).items()}
    model.load_weights(list(weights.items()), strict=True)
    if bits != "16":
        nn.quantize(model, group_size=64, bits=int(bits))
    mx.eval(model.parameters())
    return model


def prompt_of(inputs):
    return mx.load(inputs)["input_ids"].flatten()


def generate(folder, inputs, type, bits, tokens):
    """Greedy generation of so many tokens: the time of all, and that to the first."""
    model, prompt, tokens = load(folder, type, bits), prompt_of(inputs), int(tokens)

    def step(ids, state):
        with mx.stream(STREAM):
            logits = model(ids[None], cache=state)[:, -1, :]
            scores = logits - mx.logsumexp(logits, keepdims=True)
            return mx.argmax(scores, axis=-1)

    def generated(count):
        state = cache.make_prompt_cache(model)
        token = step(prompt, state)
        mx.async_eval(token)
        ids = []
        while len(ids) < count:
            following = None
            if len(ids) + 1 < count:
                following = step(token, state)
                mx.async_eval(following)
            ids.append(token.item())
            token = following
        return ids

    def microseconds(count):
        start = time.perf_counter()
        generated(count)
        return (time.perf_counter() - start) * 1e6

    return Case(lambda: (microseconds(tokens), microseconds(1)), sample=lambda: generated(tokens))


def below(folder, inputs, type, bits, ids):
    """How far the logit of each of `ids`, which follow the prompt, is below the largest, as the model with the weights
    of `type` computes it in f32; in standard deviations of the logits."""
    model, prompt = load(folder, type, bits), prompt_of(inputs)
    model.set_dtype(mx.float32)
    ids = mx.array([int(i) for i in ids.split(",")], prompt.dtype)
    logits = model(mx.concatenate([prompt, ids[:-1]])[None])[0, prompt.size - 1 :]
    taken = mx.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    distances = (logits.max(axis=-1) - taken) / mx.std(logits, axis=-1)
    return Case(run=None, sample=distances.tolist)


def tidy():
    mx.clear_cache()


kinds = {f.__name__: f for f in (generate, below)}
server.serve(kinds, {"version": version("mlx-lm"), "MLX": mx.__version__}, tidy=tidy)
