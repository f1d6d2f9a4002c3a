"""The models of axon_peer.exs in PyTorch, on the same weights, and their training with its Adam."""

import time

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from server import Case


def dense(w, x, name):
    return F.linear(x, w[f"{name}.kernel"], w[f"{name}.bias"])


def norm(w, x, name):
    return F.layer_norm(x.float(), x.shape[-1:], w[f"{name}.gamma"], w[f"{name}.beta"], 1e-5)


def mlp(w, x, **_):
    for name in ("hidden_0", "hidden_1"):
        x = F.relu(dense(w, x, name))
    return dense(w, x, "head")


def convolutional(w, x, **_):
    # Axon's axes: the channels are last, in memory and in what the dense layer reads.
    x = x.permute(0, 3, 1, 2)
    for name in ("conv_0", "conv_1"):
        x = F.relu(F.conv2d(x, w[f"{name}.kernel"], w[f"{name}.bias"], padding="same"))
        x = F.max_pool2d(x, 2)
    x = F.relu(dense(w, x.permute(0, 2, 3, 1).flatten(1), "hidden"))
    return dense(w, x, "head")


def transformer(w, x, blocks, heads):
    x = F.embedding(x, w["tokens.kernel"]) + w["positions.kernel"]
    batch, length, size = x.shape
    split = lambda t: t.view(batch, length, heads, -1).transpose(1, 2)
    for i in range(blocks):
        name = f"block_{i}"
        q, k, v = (split(dense(w, x, f"{name}_{part}")) for part in ("query", "key", "value"))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, size)
        x = norm(w, x + dense(w, out, f"{name}_output"), f"{name}_norm_0")
        h = F.gelu(dense(w, x, f"{name}_up"))
        x = norm(w, x + dense(w, h, f"{name}_down"), f"{name}_norm_1")
    return dense(w, x.mean(1), "head")


MODELS = {f.__name__: f for f in (mlp, convolutional, transformer)}


def turned(name, array):
    """A weight in PyTorch's layout: outputs first, and a convolution's channels last in memory."""
    if not name.endswith(".kernel") or name.startswith(("tokens", "positions")):
        return array
    if array.dim() == 4:
        return array.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return array.T.contiguous()


def turned_back(name, array):
    if not name.endswith(".kernel") or name.startswith(("tokens", "positions")):
        return array
    return (array.permute(2, 3, 1, 0) if array.dim() == 4 else array.T).contiguous()


def training(device, wait, peak, model, file, inputs, type, steps, out, compiled, blocks, heads, **_):
    """Steps of Adam on one batch; see axon_peer.exs."""
    forward, steps, sizes = MODELS[model], int(steps), {"blocks": int(blocks), "heads": int(heads)}
    batch = load_file(inputs, device=device)
    initial = load_file(file, device=device)
    is_half = type == "bf16"

    def loss_of(w, x, y):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_half):
            logits = forward(w, x, **sizes)
        return -(y * F.log_softmax(logits.float(), -1)).sum(-1).mean()

    if compiled == "true":
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, dynamic=False)

    def start():
        w = {name: turned(name, array).detach().clone().requires_grad_() for name, array in initial.items()}
        options = {"fused": True} if device == "cuda" else {}
        return w, torch.optim.Adam(w.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, **options)

    def trained(w, optimizer, count):
        losses = []
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(w, batch["x"], batch["y"])
            loss.backward()
            optimizer.step()
            wait()
            losses.append(loss.detach())
        return losses

    def run():
        state = start()
        wait()
        begin = time.perf_counter()
        trained(*state, steps)
        return (time.perf_counter() - begin) * 1e6 / steps

    def sample():
        w, optimizer = start()
        losses = [float(loss) for loss in trained(w, optimizer, steps)]
        save_file({name: turned_back(name, array.detach()).cpu() for name, array in w.items()}, out)
        return [losses[0], sum(losses) / steps]

    return Case(run, sample=sample, peak=lambda: peak(lambda: trained(*start(), 2)))
