"""Tokens of a picture that are kept while the others are drawn: inpainting, outpainting, drawing a region anew.

Kept tokens stand in the batch as "known" int32 [B, N(, G)], with -1 where one is to be drawn, and are put in when their step
comes. What is drawn is conditioned on all of them, exactly, where the plan lets it see them: masked prediction always; random
order, which visits them first; next-token and next-neighbor where they come first of themselves. Next-scale keeps them at each
scale, whatever stands around (VAR, arXiv 2404.02905, section 5).
"""

import numpy as np
from jaxtyping import Bool, Int
from mmgen_tokenizers.errors import UserError

from mmgen.model.config import GeneratorConfig, Masked, NextScale, RandomOrder
from mmgen.plan.plan import TARGET_COLUMN, TARGET_ROW, GenerationPlan


def with_known(c: GeneratorConfig, plan: GenerationPlan, batch: dict, known, mask) -> dict[str, np.ndarray]:
    """The batch of conditions, with the tokens that are kept, and for random orders an order that visits them first.

    Raises UserError where the arrays do not fit, or where the plan cannot keep these tokens.
    """
    if known is None and mask is None:
        return batch
    if known is None or mask is None:
        raise UserError("known and known_mask go together: the tokens of a picture, and which of them are kept")
    rows = len(next(iter(batch.values())))
    known, mask = _fitted(c, np.asarray(known), np.asarray(mask).astype(bool), rows)
    if isinstance(c.plan, RandomOrder):
        order = np.argsort(~mask.reshape(rows, c.layout.sites, -1)[..., 0], axis=1, kind="stable")
        known, mask = (np.take_along_axis(a, _like(order, a), axis=1) for a in (known, mask))
        batch = batch | {"position": c.plan.places(c.layout, c.condition.slots, order).astype(np.int32)}
    elif not isinstance(c.plan, Masked | NextScale):
        _check_order(c, plan, mask)
    return batch | {"known": np.where(mask, known, -1).astype(np.int32)}


def in_raster(c: GeneratorConfig, batch: dict, tokens: Int[np.ndarray, "b n ..."]) -> Int[np.ndarray, "b n ..."]:
    """Tokens in the order in which `with_known` has them visited -> in the order of the sites."""
    if "position" not in batch:
        return tokens
    raster = np.empty_like(tokens)
    np.put_along_axis(raster, _like(_visited(c, batch), tokens), tokens, axis=1)
    return raster


def in_order(c: GeneratorConfig, batch: dict, tokens: Int[np.ndarray, "b n ..."]) -> Int[np.ndarray, "b n ..."]:
    """The inverse of `in_raster`."""
    return np.take_along_axis(tokens, _like(_visited(c, batch), tokens), axis=1) if "position" in batch else tokens


def _visited(c: GeneratorConfig, batch: dict) -> Int[np.ndarray, "b n"]:
    """Which site comes when."""
    place = batch["position"][:, c.condition.slots - 1 :]
    return place[..., TARGET_ROW] * c.layout.width + place[..., TARGET_COLUMN]


def _like(index: Int[np.ndarray, "b n"], array: np.ndarray) -> np.ndarray:
    return index.reshape(*index.shape, *[1] * (array.ndim - 2))


def _fitted(
    c: GeneratorConfig, known: np.ndarray, mask: np.ndarray, rows: int
) -> tuple[Int[np.ndarray, "b n ..."], Bool[np.ndarray, "b n ..."]]:
    """Both for each row, and each sub-token where a site has several."""
    layout = c.layout
    site = (layout.sites, layout.groups) if layout.groups > 1 else (layout.sites,)
    known = known if known.ndim > len(site) else known[None]
    mask = mask if mask.ndim > 1 else mask[None]
    if mask.shape[1:] == (layout.sites,) and layout.groups > 1:
        mask = np.repeat(mask[..., None], layout.groups, axis=2)
    shapes = [(len(a) in (1, rows)) and a.shape[1:] == site for a in (known, mask)]
    if not all(shapes):
        raise UserError(
            f"known {known.shape} and known_mask {mask.shape} do not fit: this model needs {(rows, *site)} of both, or one row"
        )
    known, mask = np.broadcast_to(known, (rows, *site)), np.broadcast_to(mask, (rows, *site))
    if mask.any() and not (0 <= known[mask].min() and known[mask].max() < layout.codebook_size):
        raise UserError(f"known tokens that are kept must be in 0 .. {layout.codebook_size - 1}")
    whole = mask.reshape(rows, layout.sites, -1)
    if not isinstance(c.plan, Masked) and (whole != whole[..., :1]).any():
        raise UserError("only masked models can keep a part of a site's sub-tokens: give known_mask as [B, N]")
    return known, mask


def _check_order(c: GeneratorConfig, plan: GenerationPlan, mask: Bool[np.ndarray, "b n ..."]) -> None:
    """Raises UserError where a kept site comes after one that is to be drawn, which could not see it."""
    for kept in mask.reshape(len(mask), plan.sites, -1)[..., 0]:
        last = int(np.argmax(np.where(kept, plan.site_time, -1)))
        first = int(np.argmin(np.where(kept, plan.times, plan.site_time)))
        if kept[last] and not kept[first] and plan.site_time[first] < plan.site_time[last]:
            raise UserError(
                f"{type(c.plan).__name__} cannot look ahead: it draws site {first} at step {plan.site_time[first]}, before it "
                f"knows the kept site {last} of step {plan.site_time[last]}. It can keep only the first sites of its order "
                "(NextToken: the upper rows, to continue them downwards; NextNeighbor: the upper left corner); Masked, "
                "RandomOrder and NextScale models keep any"
            )
