"""Finite scalar quantization (arXiv 2309.15505): 64 tokens of 8 x 6 x 5 levels, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/fsq.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("fsq")
