"""Residual tokens at four scales (VAR, arXiv 2404.02905): 1 + 4 + 16 + 64 tokens of 64 codes, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/multiscale.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("multiscale")
