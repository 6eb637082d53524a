"""Embedded scenes: 16 tokens of 1024 codes for a picture of 32 x 32, one token a quarter of a cell.

    mmgen train experiments/shapes/tokenizer.py

Result: see generator.py. The network is that of `mmgen quickstart`, trained longer.
"""

from dataclasses import replace

from mmgen import quickstart
from mmgen.config import Experiment


def experiment() -> Experiment:
    return replace(quickstart.tokenizer(), steps=2000, every_preview=500)
