"""Binary codes on the sphere (BSQ, arXiv 2406.07548): 64 tokens of 8 bits, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/bsq.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("bsq")
