"""Vector quantization (VQ-VAE, arXiv 1711.00937) with normalised codes: 64 tokens of 256 codes, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/vq.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("vq")
