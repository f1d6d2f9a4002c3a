"""The Python side of bench/decoder: the model of bench/decoder.exs in bare MLX. For each line of input it runs the model once and
prints the milliseconds; for the line "output" it writes the logits to the file that follows."""

import sys
import time

import mlx.core as mx

weights_path, blocks, heads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mx.set_default_device(mx.cpu)
w = mx.load(weights_path)
tokens = w["tokens"]


def attention(x, i):
    batch, length, size = x.shape
    split = lambda t: t.reshape(batch, length, heads, size // heads).transpose(0, 2, 1, 3)
    q, k, v = (split(x @ w[f"{name}{i}"]) for name in "qkv")
    dims = size // heads
    q, k = (mx.fast.rope(t, dims, traditional=False, base=10000.0, scale=1.0, offset=0) for t in (q, k))
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=dims**-0.5, mask="causal")
    return out.transpose(0, 2, 1, 3).reshape(batch, length, size) @ w[f"o{i}"]


def model(tokens):
    x = w["embedding"][tokens]
    for i in range(blocks):
        x = x + attention(mx.fast.rms_norm(x, w[f"attention_norm{i}"], 1e-5), i)
        h = mx.fast.rms_norm(x, w[f"ffn_norm{i}"], 1e-5)
        gate = h @ w[f"gate{i}"]
        x = x + (gate * mx.sigmoid(gate) * (h @ w[f"up{i}"])) @ w[f"down{i}"]
    return mx.fast.rms_norm(x, w["norm"], 1e-5) @ w["head"]


mx.eval(list(w.values()))

for line in sys.stdin:
    words = line.split()
    start = time.perf_counter()
    logits = model(tokens)
    mx.eval(logits)
    elapsed = (time.perf_counter() - start) * 1000
    if words[0] == "output":
        mx.save_safetensors(words[1], {"logits": logits})
    print(elapsed, flush=True)
