"""Tokens that are kept while the others are drawn, for every kind of plan."""

import dataclasses

import jax
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import GeneratorConfig
from mmgen.model.orders import in_orders
from mmgen.plan import NextToken

ASK = dict(temperature=2.0, guidance=1.5, seed=4)
rng = np.random.default_rng(0)


def generator(c: GeneratorConfig) -> Generator:
    return Generator(c, plans.randomized(transformer.init(c, jax.random.key(0))))


@pytest.fixture(scope="module")
def masked() -> Generator:
    c = plans.config("masked")
    return generator(dataclasses.replace(c, layout=dataclasses.replace(c.layout, groups=2)))


@pytest.fixture(scope="module")
def raster() -> Generator:
    c = plans.config("neighbor")
    return generator(dataclasses.replace(c, plan=NextToken()))


@pytest.mark.parametrize("name", ["raster", "scale"])
def test_keeping_what_was_drawn_gives_the_same_picture_and_keeping_other_tokens_another(name, request):
    """Noise goes by site: the tokens that are drawn behind kept ones are those that were drawn behind the same ones."""
    gen = request.getfixturevalue("raster") if name == "raster" else generator(plans.config(name))
    plan = transformer.build_plan(gen.config)
    noise = rng.integers(0, 5, (2, plan.sites))
    drawn = gen.generate(labels=[0, 2], known=noise, known_mask=np.zeros(plan.sites), **ASK).tokens
    keep = rng.random((2, plan.sites)) < 0.5 if name == "scale" else np.tile(np.arange(16) < 6, (2, 1))
    same = gen.generate(labels=[0, 2], known=np.where(keep, drawn, noise), known_mask=keep, **ASK).tokens
    assert (same == drawn).all() and (drawn != noise).any()
    known = (drawn + keep) % 5
    other = gen.generate(labels=[0, 2], known=known, known_mask=keep, **ASK).tokens
    assert (other == known)[keep].all() and (other != drawn)[~keep].any()
    pair = gen.generate(labels=[0], known=known[0], known_mask=keep[0], num=2, **ASK).tokens
    assert (pair[0] == other[0]).all() and (pair[1] != other[0]).any() and (pair == known[0])[:, keep[0]].all()


def test_random_order_draws_the_others_from_the_law_given_all_that_is_kept():
    gen = generator(plans.config("random"))
    keep, known = rng.random((2, 16)) < 0.4, rng.integers(0, 5, (2, 16))
    out = gen.generate(labels=[0, 2], known=known, known_mask=keep, top_k=1, guidance=1.0).tokens
    assert (out == known)[keep].all()
    order = np.argsort(~keep, axis=1, kind="stable")
    batch = in_orders(gen.config, {"ids": out, "label": np.array([0, 2])}, order)
    likely = np.argmax(jax.jit(lambda batch: transformer.forward(gen.config, gen.params, batch))(batch), -1)
    for row in range(2):
        drawn = ~keep[row][order[row]]
        assert (likely[row][drawn] == out[row][order[row]][drawn]).all() and drawn.any()


def test_masked_prediction_keeps_any_sub_token_and_sees_it_from_the_first_round(masked):
    keep, known = rng.random((2, 16, 2)) < 0.6, rng.integers(0, 5, (2, 16, 2))
    out = masked.generate(labels=[0, 2], known=known, known_mask=keep, **ASK).tokens
    assert (out == known)[keep].all() and out.max() < 5
    one = masked.generate(labels=[0, 2], known=known, known_mask=keep, steps=1, top_k=1, guidance=1.0).tokens
    logits = masked.logits(np.where(keep, known, 5), labels=[0, 2])
    assert (one == np.where(keep, known, logits.argmax(-1))).all()
    every = masked.generate(labels=[0, 2], known=known, known_mask=np.ones(16, bool), **ASK).tokens
    assert (every == known).all()


def test_the_null_label_is_enough_where_tokens_are_known(masked):
    known, null = np.zeros((16, 2), int), [masked.null_label] * 2
    out = masked.generate(labels=null, known=known, known_mask=np.arange(16) < 8, **ASK).tokens
    assert out.shape == (2, 16, 2) and not out[:, :8].any() and out.any()
    with pytest.raises(UserError, match="labels must be numbers in 0 .. 2"):
        masked.generate(labels=[masked.null_label])


def test_what_cannot_be_kept_is_refused(masked, raster):
    ids = np.zeros((16, 2), int)
    for given, words in (
        ({"known": ids}, "known and known_mask go together"),
        ({"known_mask": np.ones(16)}, "known and known_mask go together"),
        ({"known": ids, "known_mask": np.ones(15)}, r"known_mask \(1, 15\) do not fit: this model needs \(1, 16, 2\)"),
        ({"known": ids[:, 0], "known_mask": np.ones(16)}, r"known \(16,\)|do not fit"),
        ({"known": np.stack([ids] * 3), "known_mask": np.ones(16)}, r"known \(3, 16, 2\)"),
        ({"known": ids + 5, "known_mask": np.ones(16)}, "kept must be in 0 .. 4"),
    ):
        with pytest.raises(UserError, match=words):
            masked.generate(labels=[0], **given)
    words = "NextToken cannot look ahead: it draws site 0 at step 0, before it knows the kept site 15 of step 15"
    with pytest.raises(UserError, match=words):
        raster.generate(labels=[0], known=ids[:, 0], known_mask=np.arange(16) > 3)
    neighbor = Generator(plans.config("neighbor"), {})
    with pytest.raises(UserError, match="NextNeighbor cannot look ahead"):
        neighbor.generate(labels=[0], known=ids[:, 0], known_mask=np.arange(16) < 8)
