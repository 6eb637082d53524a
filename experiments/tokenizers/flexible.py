"""Ordered tokens of which any first few make a picture (One-D-Piece, arXiv 2501.10064):
64 tokens of 240 codes, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/flexible.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("flexible")
