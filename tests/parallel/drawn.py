"""Draws with a saved generator on four fake devices: `drawn.py FOLDER OUT`, a file for each number of devices that share a
picture."""

import sys

import jax
import numpy as np

import mmgen

ASKED = {"labels": [0, 1, 2, 0, 1], "guidance": 2.0, "seed": 5}
FEW = 3
CASES = ("next", 1), ("next", 2), ("masked", 2)  # models, and how many devices share a picture


def drawn(generator: mmgen.Generator) -> dict[str, np.ndarray]:
    """Five pictures, which no number of replicas divides."""
    made = generator.generate(**ASKED)
    tokenizer = generator.tokenizer.over(jax.local_devices())
    return {"tokens": made.tokens, "images": made.images, "codes": tokenizer.encode(made.images)}


def otherwise(generator: mmgen.Generator, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """In other ways, a part of them as a stream; and what the model says of these tokens."""
    jacobi = generator.generate(**ASKED, decoder="jacobi", window=4)
    *_, last = generator.stream(**ASKED | {"labels": ASKED["labels"][:FEW]}, every=7)
    likelihood = generator.log_likelihood(tokens, labels=ASKED["labels"])
    return {"jacobi": jacobi.tokens, "forwards": jacobi.forwards, "stream": last.tokens, "likelihood": likelihood}


if __name__ == "__main__":
    for name, tensor in CASES:
        generator = mmgen.load(f"{sys.argv[1]}/{name}", "float32", tensor=tensor)
        found = drawn(generator)
        if (name, tensor) == ("next", 2):
            found |= otherwise(generator, found["tokens"])
        q = generator.fused["layers"][0]["qkv_turned"]
        piece = q.addressable_shards[0].data.size / q.size
        np.savez(f"{sys.argv[2]}/{name}{tensor}.npz", devices=len(q.sharding.device_set), piece=piece, **found)
