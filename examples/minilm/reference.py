"""MiniLM's embeddings by NumPy, in float64 and one sentence at a time, so with neither padding nor a mask: what the
demo compares with. Writes them as raw little-endian float64, 384 a sentence.

python3 reference.py MODEL_FOLDER TOKEN_IDS OUTPUT
"""

import json
import math
import sys

import numpy as np

LAYERS, HEADS, EPS = 6, 12, 1e-12  # config.json


def load_safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry["dtype"] == "F32"
    }


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]


def layer_norm(weights, name, x):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(weights, name, x):
    length, hidden = x.shape

    def heads(kind):
        return linear(weights, f"{name}.{kind}", x).reshape(length, HEADS, -1).transpose(1, 0, 2)

    q, k, v = heads("query"), heads("key"), heads("value")
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(hidden // HEADS)
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(length, hidden)


def embed(weights, ids):
    """The embedding, of 384 numbers, of one sentence's token ids."""
    x = (
        weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = layer_norm(weights, "embeddings.LayerNorm", x)
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        y = linear(weights, f"{layer}.attention.output.dense", attention(weights, f"{layer}.attention.self", x))
        x = layer_norm(weights, f"{layer}.attention.output.LayerNorm", x + y)
        y = linear(weights, f"{layer}.output.dense", gelu(linear(weights, f"{layer}.intermediate.dense", x)))
        x = layer_norm(weights, f"{layer}.output.LayerNorm", x + y)
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def main(model, token_ids, output):
    weights = load_safetensors(f"{model}/model.safetensors")
    with open(token_ids, encoding="utf-8") as file:
        sentences = [[int(token) for token in line.split("\t")[0].split()] for line in file]
    with open(output, "wb") as file:
        for ids in sentences:
            file.write(embed(weights, ids).astype("<f8").tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
