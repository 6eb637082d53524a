"""Orders of each sample's own: how they are drawn, and that a batch in them is the same batch."""

import dataclasses

import jax
import numpy as np
import plans
import pytest

from mmgen.model import transformer
from mmgen.model.orders import draw_orders, in_orders
from mmgen.plan.plan import TARGET_COLUMN, TARGET_ROW

CONFIG = plans.config("random")
draw = jax.jit(lambda key, progress: draw_orders(CONFIG, key, progress, 3000))


@pytest.fixture(scope="module")
def orders():
    return np.asarray(draw(jax.random.key(0), 0.0))


@pytest.mark.statistics
def test_orders_are_permutations_drawn_alike_for_every_sample(orders):
    assert (np.sort(orders, 1) == np.arange(16)).all() and len({o.tobytes() for o in orders}) == len(orders)
    seen = np.zeros((16, 16))  # [step, site]
    np.add.at(seen, (np.tile(np.arange(16), len(orders)), orders.reshape(-1)), 1)
    expected = len(orders) / 16
    assert ((seen - expected) ** 2 / expected).sum() < 225 + 5 * np.sqrt(2 * 225)  # chi-square, 15 x 15 degrees


@pytest.mark.statistics
def test_the_share_of_random_orders_falls(orders):
    for progress, share in ((0.5625, 0.75), (0.75, 0.0)):
        random = (np.asarray(draw(jax.random.key(0), progress)) != np.arange(16)).any(1).mean()
        assert abs(random - share) < 0.04
    again, other = (np.asarray(draw(jax.random.key(seed), 0.0)) for seed in (0, 1))
    assert (again == orders).all() and (other != orders).any(1).mean() > 0.99


def test_a_batch_in_orders_keeps_each_id_at_its_place(orders):
    for groups in (1, 2):
        c = dataclasses.replace(CONFIG, layout=dataclasses.replace(CONFIG.layout, groups=groups))
        ids = np.random.default_rng(0).integers(0, 5, (4, 16, groups) if groups > 1 else (4, 16))
        batch = in_orders(c, {"ids": ids, "label": np.zeros(4, int)}, orders[:4])
        place = np.asarray(batch["position"])
        site = place[:, :, TARGET_ROW] * 4 + place[:, :, TARGET_COLUMN]
        assert (site == orders[:4]).all() and batch["label"].shape == (4,)
        assert (np.asarray(batch["ids"]) == np.stack([row[o] for row, o in zip(ids, site, strict=True)])).all()


@pytest.mark.parametrize("block", [{}, plans.RAR], ids=["rotary", "rar"])
def test_a_prediction_depends_on_the_order_before_it_alone(orders, block):
    """Two orders that begin alike predict alike as long as they do, then otherwise; what follows matters to neither."""
    c = plans.config("random", **block)
    params = plans.randomized(transformer.init(c, jax.random.key(0)))
    ids = np.tile(np.random.default_rng(0).integers(0, 5, 16), (2, 1))
    pair = np.tile(orders[0], (2, 1))
    pair[1, 7:] = pair[1, 7:][::-1]
    batch = in_orders(c, {"ids": ids, "label": np.array([1, 1])}, pair)
    logits = np.asarray(jax.jit(lambda batch: transformer.forward(c, params, batch))(batch))
    assert np.abs(logits[0, :7] - logits[1, :7]).max() < 1e-5 < np.abs(logits[0, 7] - logits[1, 7]).max()
