"""NAR (arXiv 2503.10696): family `nar`. LlamaGen's names, one more layer, and behind it a second head.

`config` takes NAR's own keys as in llamagen.py.
"""

import functools

from mmgen.model.config import NextNeighbor
from mmgen.pretrained import llamagen

ROWS = (
    *llamagen.ROWS,
    ("medusa_norm.weight", "ends.heads.head1.norm", ""),
    ("medusa_output.weight", "ends.heads.head1.map", "linear"),
)
# layers before the right head, heads, width, MLP width, recommended guidance of the published class-conditional weights
SIZES = {
    "GPT-B": (12, 12, 768, 2048, 2.0),
    "GPT-M": (18, 16, 1024, 2816, 2.0),
    "GPT-L": (24, 16, 1024, 2816, 2.0),
    "GPT-XL": (36, 20, 1280, 3584, 2.0),
    "GPT-XXL": (48, 24, 1536, 4096, 2.0),
}
PLAN = NextNeighbor("none")

preset = functools.partial(llamagen.preset, sizes=SIZES, plan=PLAN)
configure = functools.partial(llamagen.configure, family="nar", sizes=SIZES, plan=PLAN)
reference_shapes = functools.partial(llamagen.reference_shapes, rows=ROWS, plan=PLAN)
from_reference = functools.partial(llamagen.from_reference, rows=ROWS)
to_reference = functools.partial(llamagen.to_reference, rows=ROWS, plan=PLAN)
