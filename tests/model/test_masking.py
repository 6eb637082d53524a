"""Which tokens masked prediction hides while training, and its loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from mmgen.model import transformer
from mmgen.model.masking import holes
from mmgen.plan import Masked


@pytest.mark.parametrize(("schedule", "mean"), [("cosine", 2 / np.pi), ("linear", 0.5), ("arccos", 2 / np.pi)])
def test_holes_are_as_many_as_the_schedule_says_and_anywhere(schedule, mean):
    hidden = np.asarray(holes(Masked(schedule), (4000, 40, 2), jax.random.key(0)))
    share = hidden.reshape(4000, -1).mean(1)
    assert share.min() >= 1 / 80 and abs(share.mean() - mean - 1 / 160) < 0.015  # rounded up: half a token more
    assert np.abs(hidden.mean(0) - share.mean()).max() < 0.05
    expected = {"cosine": 2 / 3, "linear": 0.5, "arccos": np.cos(np.pi / 4)}[schedule]  # up to which r the share is over 1/2
    assert abs((share > 0.5).mean() - expected) < 0.03


@pytest.mark.parametrize("visible_weight", [0.0, 0.25])
def test_loss_is_the_smoothed_cross_entropy_of_what_is_hidden(visible_weight):
    c = plans.config("masked")
    c = dataclasses.replace(c, plan=Masked(visible_weight=visible_weight))
    params, key = plans.randomized(transformer.init(c, jax.random.key(0))), jax.random.key(5)
    ids = np.asarray(jax.random.randint(jax.random.key(1), (3, 16), 0, 5))
    value, metrics = transformer.loss(c, params, {"ids": ids, "label": jnp.arange(3)}, key)
    hidden = np.asarray(holes(c.plan, ids.shape, jax.random.split(key)[0]))
    seen = {"ids": np.where(hidden, 5, ids), "label": jnp.arange(3)}
    logp = np.asarray(jax.nn.log_softmax(transformer.forward(c, params, seen)))
    label = 0.9 * np.eye(5)[ids] + 0.1 / 5
    weight = np.where(hidden, 1, visible_weight)
    np.testing.assert_allclose(value, -((label * logp).sum(-1) * weight).sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logp.argmax(-1) == ids)[hidden].mean(), rtol=1e-5)


def test_a_hidden_token_is_not_seen():
    for embedding, codes in (("table", 5), ("bits", 4)):
        c = plans.config("masked")
        layout = dataclasses.replace(c.layout, codebook_size=codes, groups=2)
        c = dataclasses.replace(c, plan=Masked(embedding=embedding), layout=layout)
        params = plans.randomized(transformer.init(c, jax.random.key(0)))
        ids = np.arange(32).reshape(1, 16, 2) % codes
        half = ids.copy()
        half[0, 3, 1] = codes  # of one site one sub-token
        other = ids.copy()
        other[0, 3, 1] = (ids[0, 3, 1] + 1) % codes
        read = jax.jit(lambda ids, c=c, params=params: transformer.forward(c, params, {"ids": ids, "label": jnp.array([0])}))
        logits = [np.asarray(read(x)) for x in (ids, half, other)]
        assert logits[0].shape == (1, 16, 2, codes)
        assert min(np.abs(a - b).max() for a, b in ((logits[0], logits[1]), (logits[0], logits[2]))) > 1e-3
