"""The Python side of bench/generation: mlx-lm's own models with the weights of the Elixir side, driven as mlx-lm's `generate_step` drives
them: the next token's graph is submitted before this one's is read. For each line of input it generates once and prints the
milliseconds: "<tokens>" generates so many, "output <file>" saves those generated last, "quantize <bits>" keeps the weights in
so many bits."""

import json
import sys
import time
import types
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

# mlx_lm's own module imports tokenizers, which its models do without.
folder = next(path for path in map(Path, sys.path) if (path / "mlx_lm" / "models").is_dir())
package = types.ModuleType("mlx_lm")
package.__path__ = [str(folder / "mlx_lm")]
sys.modules["mlx_lm"] = package

from mlx_lm.models import cache, llama, qwen3  # noqa: E402

weights, device, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
module = {"qwen3": qwen3, "llama": llama}[arguments["model_type"]]
model = module.Model(module.ModelArgs.from_dict(arguments))
arrays = mx.load(weights)
prompt = arrays.pop("prompt").flatten()
model.load_weights(list(arrays.items()), strict=True)
mx.eval(model.parameters())
tokens = []
stream = mx.new_stream(mx.default_device())


def step(ids, state):
    with mx.stream(stream):
        logits = model(ids[None], cache=state)[:, -1, :]
        scores = logits - mx.logsumexp(logits, keepdims=True)
        return mx.argmax(scores, axis=-1)


def generate(count):
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


for line in sys.stdin:
    words = line.split()
    start = time.perf_counter()
    if words[0] == "output":
        mx.save_safetensors(words[1], {"tokens": mx.array(tokens, mx.int32)})
    elif words[0] == "quantize":
        nn.quantize(model, group_size=64, bits=int(words[1]))
        mx.eval(model.parameters())
    else:
        tokens = generate(int(words[0]))
    print((time.perf_counter() - start) * 1000, flush=True)
