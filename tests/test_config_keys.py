"""The keys of published configurations: used, checked, or ignored by name."""

import warnings

import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pretrained import FAMILIES as TOKENIZERS
from mmgen_tokenizers.pretrained import chameleon, taming
from mmgen_tokenizers.pretrained.from_weights import settings

from mmgen.pretrained import FAMILIES, nar

PUBLISHED = [module for module in (*TOKENIZERS.values(), *FAMILIES.values()) if module not in (chameleon, nar)]  # those refer


@pytest.mark.parametrize("module", PUBLISHED, ids=lambda module: module.__name__)
def test_every_ignored_key_is_documented(module):
    refers = set(taming.IGNORED) if "what taming.py ignores" in module.__doc__ else set()
    assert {key for key in module.IGNORED if key not in module.__doc__} <= refers


def test_ignored_keys_are_named_and_unknown_ones_refused():
    with pytest.warns(UserWarning, match="^vq ignores the config keys dropout, loss$"):
        found = settings(
            "vq", {"beta": 2, "model": {"dropout": 0.1, "ch": 3}, "loss": {"kind": 1}}, {"beta": 1}, ["ch"], ["dropout", "loss"]
        )
    assert (found["beta"], found["ch"]) == (2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings("vq", {"beta": 2}, {"beta": 1}, ["ch"], ["dropout"])
    with pytest.raises(UserError, match="vq: unknown config key 'dropuot'. Did you mean 'dropout'"):
        settings("vq", {"dropuot": 0}, {"beta": 1}, ["ch"], ["dropout"])
