"""The attention rule against masks written out the long way, and what plans refuse."""

import dataclasses

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ

from mmgen.plan.masked import Masked
from mmgen.plan.next_neighbor import NextNeighbor
from mmgen.plan.next_scale import NextScale
from mmgen.plan.next_token import NextToken
from mmgen.plan.plan import (
    COLUMN,
    INDEX,
    NEVER,
    NOWHERE,
    POSITIONS,
    QUERY,
    ROW,
    TARGET_COLUMN,
    TARGET_ROW,
    GenerationPlan,
)
from mmgen.plan.random_order import RandomOrder


def rule(plan):
    slot = np.arange(plan.slots)
    return plan.allow(slot, slot)


def grid(side):
    return TokenLayout(height=side, width=side, codebook_size=7)


@pytest.mark.parametrize("condition", [1, 5])
def test_next_token_is_plain_causal(condition):
    plan = NextToken().build(grid(4), condition)
    assert plan.causal and plan.slots == condition + 15 and plan.times == plan.sites == 16
    assert (rule(plan) == np.tri(condition + 15, dtype=bool)).all()
    assert plan.source.tolist() == [-1] * condition + list(range(15))
    assert (plan.combine_slot[:, 0] == condition - 1 + np.arange(16)).all()


@pytest.mark.parametrize("plan", [NextToken(), NextNeighbor()])
def test_one_grid_is_wanted(plan):
    with pytest.raises(UserError, match="gives 1 x 1 . 2 x 2 = 5 ids of 7 codes: use one of (a single|one) scale"):
        plan.build(TokenLayout("scales", 2, 2, 7, scales=((1, 1), (2, 2))), 1)


def test_positions_of_the_condition():
    nowhere, diagonal = (NextToken(p).build(grid(3), 2).position for p in ("none", "diagonal"))
    assert (nowhere[:2, [ROW, COLUMN]] == NOWHERE).all() and nowhere[2:5, COLUMN].tolist() == [0, 1, 2]
    assert diagonal[:2, ROW].tolist() == diagonal[:2, COLUMN].tolist() == [0, 1]
    assert diagonal[2:, ROW].tolist() == [2, 2, 2, 3, 3, 3, 4, 4] and diagonal[2:, COLUMN].tolist() == [2, 3, 4] * 2 + [2, 3]


def test_next_token_in_any_order():
    order = (2, 0, 3, 1)
    plan = NextToken(order=order).build(grid(2), 3)
    assert plan.causal and plan.source.tolist() == [-1, -1, -1, 2, 0, 3]
    assert plan.combine_slot[list(order), 0].tolist() == [2, 3, 4, 5] and plan.site_time[list(order)].tolist() == [0, 1, 2, 3]
    assert plan.position[3:, ROW].tolist() == [4, 3, 4] and plan.position[3:, COLUMN].tolist() == [3, 3, 4]
    assert plan.position[:, INDEX].tolist() == [0, 1, 2, 5, 3, 6]


@pytest.mark.parametrize(
    ("order", "words"),
    [((0, 1, 1, 3), "1 is named 2 times, 2 is named 0 times"), ((0, 1, 2), "it has 3 numbers, 3 is named 0 times"),
     ((0, 1, 2, 9), "3 is named 0 times"), ((-1, 1, 2, 3), "it has 4 numbers"), ((0, 1, 2, 3, 4), "it has 5 numbers")],
)  # fmt: skip
def test_an_order_names_each_site_once(order, words):
    with pytest.raises(UserError, match=f"each of the sites 0 .. 3 once.*{words}"):
        NextToken(order=order).build(grid(2), 1)


def test_random_order_draws_in_raster_order_and_is_told_its_targets():
    plan, raster = RandomOrder("none").build(grid(3), 2), NextToken("none").build(grid(3), 2)
    for name, array in vars(raster).items():
        known = slice(None) if name != "position" else np.s_[:, :TARGET_ROW]
        assert (getattr(plan, name)[known] == array[known]).all()
    assert plan.position[:, TARGET_ROW].tolist() == [NOWHERE, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert plan.position[:, TARGET_COLUMN].tolist() == [NOWHERE, 0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_places_of_samples_in_orders_of_their_own():
    orders = np.stack([np.random.default_rng(seed).permutation(6) for seed in range(4)])
    layout = TokenLayout(height=2, width=3, codebook_size=7)
    places = RandomOrder("diagonal").places(layout, 2, orders)
    for order, place in zip(orders, places, strict=True):
        assert (place[1:, TARGET_ROW] * 3 + place[1:, TARGET_COLUMN] == order).all()
        assert (place[2:, ROW] - 2 == order[:-1] // 3).all() and (place[2:, COLUMN] - 2 == order[:-1] % 3).all()
        assert place[:, INDEX].tolist() == [0, 1, *(2 + order[:-1])] and place[0, TARGET_ROW] == NOWHERE
        assert place[:2, ROW].tolist() == [0, 1]


@pytest.mark.parametrize("anneal", [(0.7, 0.2), (-0.1, 0.5), (0.5, 1.5)])
def test_annealing_is_a_part_of_the_run(anneal):
    with pytest.raises(UserError, match="two fractions of the training run"):
        RandomOrder(anneal=anneal)


def test_share_of_random_orders():
    assert [RandomOrder().random_share(t) for t in (0, 0.5, 0.625, 0.75, 1)] == [1, 1, 0.5, 0, 0]
    assert [RandomOrder(anneal=(0, 0)).random_share(t) for t in (0, 0.5)] == [0, 0]
    assert RandomOrder(anneal=(1, 1)).random_share(0.999) == 1


def test_diagonals_have_the_mask_of_nar():
    n = 8
    plan = NextNeighbor().build(grid(n), 1)
    reference = np.tril(np.ones((1 + n * n, 1 + n * n), bool))
    image = reference[1:, 1:]
    image[:] = False
    previous = []
    for c in range(2 * n - 1):  # as the published code builds it
        current = [h * n + c - h for h in range(n) if 0 <= c - h < n]
        previous += current
        for i in current:
            image[i, previous] = True
    order = np.concatenate([[0], 1 + plan.source[1:]])
    assert (rule(plan) == reference[np.ix_(order, order)]).all()
    assert plan.times == 2 * n - 1 and plan.combine_head.max() == 1
    assert np.allclose(plan.combine_weight.sum(1), 1)


def test_scales_have_the_mask_of_var():
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    quantizer = MultiScaleVQ(size=7, scales=sides)
    plan = NextScale(quantizer).build(TokenLayout("scales", 16, 16, 7, scales=quantizer.grids(16, 16)), 1)
    scale = np.repeat(np.arange(len(sides)), [s * s for s in sides])
    assert (rule(plan) == (scale[:, None] >= scale[None])).all() and not plan.causal and plan.times == 10


def test_what_covers_the_same_part_of_a_picture_has_the_same_place_in_all_scales():
    quantizer = MultiScaleVQ(size=7, scales=(1, 2, 6))
    plan = NextScale(quantizer).build(TokenLayout("scales", 6, 6, 7, scales=quantizer.grids(6, 6)), 1)
    row, column = plan.position[1:, ROW], plan.position[1:, COLUMN]  # the class stands for the first scale
    row, column = row - 2, column - 2  # the class stands before them
    assert row[:4].tolist() == [3, 3, 9, 9] and column[:4].tolist() == [3, 9, 3, 9]  # half cells of the finest scale
    assert column[4:10].tolist() == [1, 3, 5, 7, 9, 11] and row[4:].reshape(6, 6)[:, 0].tolist() == [1, 3, 5, 7, 9, 11]
    three = NextScale(MultiScaleVQ(size=7, scales=(1, 3, 16)))
    places = three.build(TokenLayout("scales", 16, 16, 7, scales=three.quantizer.grids(16, 16)), 1).position[1:4, COLUMN] - 2
    assert places.tolist() == [5, 16, 27]  # mirrored, they are the same


def test_masked_slots_see_all_and_predict_themselves():
    plan = Masked().build(grid(4), 3)
    assert rule(plan).all() and not plan.causal and plan.times == 1
    assert plan.combine_slot[:, 0].tolist() == list(range(3, 19)) and plan.condition_slots == 3


def test_what_masked_prediction_refuses():
    with pytest.raises(UserError, match="use one of a single scale"):
        Masked().build(TokenLayout("scales", 2, 2, 7, scales=((1, 1), (2, 2))), 1)
    with pytest.raises(UserError, match="7 codes are no whole number of bits: set plan.embedding to table"):
        Masked(embedding="bits").build(grid(2), 1)
    for wrong in ({"steps": 0}, {"choice_temperature": -1.0}, {"smoothing": 1.0}, {"visible_weight": 2.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Masked(**wrong)


def _bare(**columns) -> GenerationPlan:
    """A plan of slots alone, for rules that no model uses yet."""
    slots = len(columns["reads"])
    arrays = {
        "kind": np.ones(slots, int), "source": np.full(slots, -1), "clique": np.full(slots, -1),
        "position": np.zeros((slots, POSITIONS), int), "site_time": np.array([0]), "combine_slot": np.array([[0]]),
        "combine_head": np.array([[0]]), "combine_weight": np.ones((1, 1), np.float32), "loss_weight": np.ones(1, np.float32),
    }  # fmt: skip
    return GenerationPlan(**arrays | {name: np.array(value) for name, value in columns.items()})


@pytest.mark.parametrize(("sites", "width"), [(64, 4), (64, 16)])
def test_parallel_groups_have_the_mask_of_par(sites, width):
    slots = 1 + (width - 1) + (sites - 1)
    reference = np.tril(np.ones((slots + width, slots + width), bool))
    for start in range(width, slots, width):
        reference[start : start + width, : start + width] = True
    time = [s if s < width else width + (s - width) // width for s in range(slots)]
    assert (rule(_bare(reads=time, visible=time)) == reference[:slots, :slots]).all()


def test_queries_that_see_each_other_have_the_mask_of_lpd():
    counts = [1, 3, 5, 7, 9]
    rows = [(2 * i, i, i, -1, 1) for i in range(4) for _ in range(counts[i])]
    rows += [(2 * i + 1, i, NEVER, 100 + i, QUERY) for i in range(4) for _ in range(counts[i + 1])]
    ids, reads, visible, clique, kind = np.array(sorted(rows, key=lambda r: r[1])).T
    context = kind != QUERY
    reference = (ids[:, None] == ids[None]) | ((ids[None] < ids[:, None]) & context[None])
    assert (rule(_bare(reads=reads, visible=visible, clique=clique, kind=kind)) == reference).all()


def test_block_diagonal_has_the_mask_of_hmar():
    scale = np.repeat([0, 1, 2], [1, 4, 9])
    plan = _bare(reads=scale, visible=[NEVER] * 14, clique=scale)
    assert (rule(plan) == (scale[:, None] == scale[None])).all()


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("source", 3, 5, "not sampled yet"),
        ("combine_slot", 3, [0], "its own time"),
        ("visible", 3, 1, "before it is computed"),
        ("reads", 3, 9, "time order"),
    ],
)
def test_contradictions_are_refused(name, index, value, message):
    plan = NextToken().build(grid(3), 1)
    broken = getattr(plan, name).copy()
    broken[index] = value
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(plan, **{name: broken})
