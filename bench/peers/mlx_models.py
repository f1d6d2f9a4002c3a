"""The suite's models in bare Python MLX, on the names that their checkpoints have."""

import mlx.core as mx


class Decoder:
    """A Llama: norms and rotary attention, a gated feed-forward part."""

    def __init__(self, weights, blocks, heads):
        self.w, self.blocks, self.heads = weights, blocks, heads

    def block(self, x, i, attend):
        w = lambda name: self.w[f"model.layers.{i}.{name}.weight"]
        batch, length, size = x.shape
        split = lambda t: t.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
        h = mx.fast.rms_norm(x, w("input_layernorm"), 1e-5)
        q, k, v = (split(h @ w(f"self_attn.{name}_proj").T) for name in "qkv")
        out = attend(q, k, v).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        x = x + out @ w("self_attn.o_proj").T
        h = mx.fast.rms_norm(x, w("post_attention_layernorm"), 1e-5)
        gate = h @ w("mlp.gate_proj").T
        return x + (gate * mx.sigmoid(gate) * (h @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T

    def head(self, x):
        return mx.fast.rms_norm(x, self.w["model.norm.weight"], 1e-5) @ self.w["lm_head.weight"].T

    def rope(self, x, offset):
        return mx.fast.rope(x, x.shape[-1], traditional=False, base=10000.0, scale=1.0, offset=offset)

    def __call__(self, tokens):
        def attend(q, k, v):
            q, k = self.rope(q, 0), self.rope(k, 0)
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")

        x = self.w["model.embed_tokens.weight"][tokens]
        for i in range(self.blocks):
            x = self.block(x, i, attend)
        return self.head(x)

    def cache(self, batch, length):
        embedding = self.w["model.embed_tokens.weight"]
        shape = (batch, self.heads, length, embedding.shape[1] // self.heads)
        cache = [[mx.zeros(shape, embedding.dtype) for _ in range(2)] for _ in range(self.blocks)]
        mx.eval(cache)
        return cache

    def step(self, token, cache, offset):
        """One token: writes its keys and values into the cache at `offset`, and sees what stands there and before."""
        end = offset + 1

        def attend(i, q, k, v):
            for part, new in enumerate((self.rope(k, offset), v)):
                cache[i][part][:, :, offset:end, :] = new
            k, v = (part[:, :, :end, :] for part in cache[i])
            return mx.fast.scaled_dot_product_attention(self.rope(q, offset), k, v, scale=q.shape[-1] ** -0.5)

        x = self.w["model.embed_tokens.weight"][token]
        for i in range(self.blocks):
            x = self.block(x, i, lambda q, k, v, i=i: attend(i, q, k, v))
        return self.head(x)


class Encoder:
    """A BERT with the mean over its tokens, scaled to length 1."""

    def __init__(self, weights, blocks, heads):
        self.w, self.blocks, self.heads = weights, blocks, heads

    def dense(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name):
        return mx.fast.layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-12)

    def __call__(self, tokens, mask):
        batch, length = tokens.shape
        table = lambda name: self.w[f"embeddings.{name}_embeddings.weight"]
        x = table("word")[tokens] + table("position")[:length] + table("token_type")[0]
        x = self.norm(x, "embeddings.LayerNorm")
        seen = (mask != 0).reshape(batch, 1, 1, length)
        for i in range(self.blocks):
            x = self.block(x, f"encoder.layer.{i}", seen)
        weights = mask[:, :, None].astype(x.dtype)
        mean = (x * weights).sum(1) / weights.sum(1)
        return mean / mx.sqrt((mean * mean).sum(-1, keepdims=True))

    def block(self, x, name, seen):
        batch, length, size = x.shape
        split = lambda t: t.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
        q, k, v = (split(self.dense(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=seen)
        out = self.dense(out.transpose(0, 2, 1, 3).reshape(batch, length, size), f"{name}.attention.output.dense")
        x = self.norm(x + out, f"{name}.attention.output.LayerNorm")
        h = self.dense(x, f"{name}.intermediate.dense")
        h = h * (1 + mx.erf(h / 2**0.5)) * 0.5
        return self.norm(x + self.dense(h, f"{name}.output.dense"), f"{name}.output.LayerNorm")
