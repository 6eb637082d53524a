"""A plan as text: the step at which each site is predicted, where it stands in the picture."""

from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.plan import GenerationPlan

SHOWN = 16  # rows and columns at most


def drawing(plan: GenerationPlan, layout: TokenLayout) -> list[str]:
    """Lines: the steps of a grid or sequence; of several scales, one line for each."""
    if layout.scales:
        starts = (0, *layout.prefixes)
        pieces = [plan.site_time[start:stop] for start, stop in zip(starts, layout.prefixes, strict=False)]
        return [f"{h} x {w}: {_span(steps)}" for (h, w), steps in zip(layout.scales, pieces, strict=True)]
    digits = len(str(plan.times - 1))
    grid = [[f"{step:>{digits}}" for step in row] for row in plan.site_time.reshape(layout.height, layout.width)]
    rows = [" ".join(row[:SHOWN] + [".."] * (len(row) > SHOWN)) for row in grid[:SHOWN]]
    return rows + [".."] * (len(grid) > SHOWN)


def _span(steps) -> str:
    return str(steps.min()) if steps.min() == steps.max() else f"{steps.min()} .. {steps.max()}"
