"""Tokens in one dimension (TiTok, arXiv 2406.07550): 64 tokens of 256 codes, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/titok.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("titok")
