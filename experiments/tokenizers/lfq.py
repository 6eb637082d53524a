"""Binary codes without a table (LFQ; MAGVIT-v2, arXiv 2310.05737): 64 tokens of 8 bits, for 64 x 64 pixels.

    mmgen train experiments/tokenizers/lfq.py

Your own pictures: --data.source.folder FOLDER --validation none (or --validation.source.folder OTHER). All families beside each
other: tools/bench/compare_tokenizers.py.
"""

from mmgen import families
from mmgen.config import Experiment


def experiment() -> Experiment:
    return families.experiment("lfq")
