"""A codebook that collapses: training chooses among a few of its codes only, which the loss alone does not show."""

import math
from collections.abc import Mapping

from mmgen_tokenizers.api import family_of
from mmgen_tokenizers.quantizers.fsq import FSQ
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ
from mmgen_tokenizers.quantizers.vq import VQ, WINDOW

from mmgen.config import Experiment, TokenizerTask

COLLAPSED = 0.25  # of the codes that would have been seen if all were chosen alike
SOON = 20  # steps: residual scales collapse within a hundred


def warning(experiment: Experiment, step: int, figures: Mapping[str, float]) -> str:
    """What to say of the `usage` among the figures of a step: which codes are hardly used, and what to change. Empty where all
    is well, and in the first steps of a run, when networks have yet to leave their start and dead codes to be revived."""
    task = experiment.task
    if "usage" not in figures or step <= experiment.optimizer.schedule.warmup + 2 * (task.revive_after or 0):
        return ""
    model, low = task.model, []
    layout = family_of(model)[1].layout(model, model.image_size, model.image_size)
    counted = {"usage": layout.sites} | {f"usage/{height}x{width}": height * width for height, width in layout.scales}
    for name, sites in counted.items():
        fair = even_share(step * experiment.batch * sites, layout.codebook_size)
        if figures[name] < COLLAPSED * fair:
            low.append(f"{name} {figures[name]:.1%} (even use would show {fair:.1%})")
    return f"step {step}: the codebook collapses: {', '.join(low)}. Change {remedies(task)}" if low else ""


def even_share(chosen: int, codes: int) -> float:
    """Share of `codes` that so many choices show within the window, where each code is as likely as any other."""
    return 1 - math.exp(-min(chosen, WINDOW) / codes)


def remedies(task: TokenizerTask) -> str:
    """What helps, of what this task does not do yet."""
    quantizer, found = task.model.quantizer, ["--optimizer.schedule.peak (lower)", "--optimizer.schedule.warmup (longer)"]
    if isinstance(quantizer, FSQ):
        return f"{', '.join(found)} or --task.model.quantizer.levels (fewer codes)"
    if isinstance(quantizer, VQ) and (task.revive_after is None or task.revive_after > SOON):
        found.append(f"--task.revive_after ({SOON}: dead codes restart at encodings soon)")
    if isinstance(quantizer, MultiScaleVQ) and task.start_from is None:
        found.append("--task.start_from (a tokenizer of one scale, trained before)")
    found.append(f"--task.model.quantizer.entropy ({'0.1' if not quantizer.entropy else f'more than {quantizer.entropy:g}'})")
    return " or ".join([", ".join(found[:-1]), found[-1]])
