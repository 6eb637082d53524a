"""Plans drawn, in the README as by `mmgen info`."""

import re

import plans
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ

from mmgen.plan import NextNeighbor, NextScale, NextToken, RandomOrder
from mmgen.plan.drawing import SHOWN, drawing

GRID, SCALES = TokenLayout(height=4, width=4, codebook_size=5), MultiScaleVQ(size=5, scales=(1, 2, 3, 4))


def test_the_readme_draws_every_plan():
    pyramid = TokenLayout("scales", 4, 4, 5, scales=SCALES.grids(4, 4))
    made = [(NextToken(), GRID), (NextNeighbor(), GRID), (NextScale(SCALES), pyramid), (plans.Halves(), GRID)]
    drawings = [drawing(plan.build(layout, 1), layout) for plan, layout in made]
    shown = re.findall("```\n([^`]+)```", re.sub("```python.*?```", "", plans.README, flags=re.DOTALL))
    assert drawings == [text.splitlines() for text in shown]
    assert drawing(RandomOrder().build(GRID, 1), GRID) == drawings[0]


def test_large_grids_are_cut():
    layout = TokenLayout(height=3, width=40, codebook_size=5)
    lines = drawing(NextToken().build(layout, 1), layout)
    assert len(lines) == 3 and lines[1].split() == [*map(str, range(40, 40 + SHOWN)), ".."]
    tall = TokenLayout(height=40, width=1, codebook_size=5)
    assert drawing(NextToken().build(tall, 1), tall)[SHOWN - 1 :] == ["15", ".."]
