"""Writes reference.safetensors: the embeddings of sentences.txt by PyTorch and Hugging Face's transformers, in float64.
Each sentence is computed alone, without padding and mask. script/demo compares its embeddings with them.

Requires torch and transformers (the file is from torch 2 and transformers 4.57). MODEL_FOLDER is the checkpoint that
script/demo fetches.

python3 reference.py MODEL_FOLDER
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertModel

FOLDER = pathlib.Path(__file__).parent


def main(checkpoint):
    tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
    tokenizer.no_padding()
    sentences = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    model = BertModel.from_pretrained(checkpoint, attn_implementation="eager").eval().double()

    embeddings = []
    with torch.no_grad():
        for row in ids:
            mean = model(torch.tensor([row])).last_hidden_state[0].mean(dim=0)
            embeddings.append(mean / mean.norm())

    # The token ids identify the sentences of the embeddings.
    length = max(map(len, ids))
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids], dtype=torch.int32)
    tensors = {"input_ids": padded, "embeddings": torch.stack(embeddings).float()}
    save_file(tensors, FOLDER / "reference.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
