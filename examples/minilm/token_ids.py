"""Writes the token ids of a text file's sentences, from MiniLM's own tokenizer. The output has one line per sentence:
the ids, separated by spaces, without padding; a tab; the sentence.

python3 token_ids.py MODEL_FOLDER SENTENCES OUTPUT
"""

import sys

from tokenizers import Tokenizer

MAX_TOKENS = 64  # the length of the demo's programs


def main(model, sentences_path, output):
    try:
        with open(sentences_path, encoding="utf-8-sig") as file:
            sentences = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError:
        sys.exit(f"{sentences_path} is not UTF-8 text")
    if len(sentences) < 2:
        sys.exit(f"{sentences_path} needs two sentences or more, one a line")

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    encodings = tokenizer.encode_batch(sentences)

    cut = sum(bool(encoding.overflowing) for encoding in encodings)
    if cut:
        print(f"Only the first {MAX_TOKENS} tokens count in {cut} of {len(sentences)} sentences.", file=sys.stderr)

    with open(output, "w", encoding="utf-8") as file:
        for encoding, sentence in zip(encodings, sentences):
            print(*encoding.ids, end=f"\t{sentence}\n", file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
