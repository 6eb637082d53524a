"""Where things are kept between runs, and which commands keep them."""

from pathlib import Path

import jax
import pytest
from mmgen_tokenizers import cache, cli

from mmgen.cli import main


def test_the_root_follows_the_environment(monkeypatch):
    for name in ("MMGEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache.cache_root() == Path.home() / ".cache" / "mmgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_root() == Path("/x/mmgen")
    monkeypatch.setenv("MMGEN_CACHE", "/m")
    assert cache.cache_root() == Path("/m")


@pytest.mark.parametrize(("told", "used"), [(None, "/m/xla"), ("/mine", "/mine")])
def test_a_place_that_jax_was_told_stays(told, used, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", "/m")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    try:
        jax.config.update(names[0], told)
        cache.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == used
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)


class Asked(BaseException):
    pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "."],
        ["tokenize", ".", "--data", "shapes", "--out", "x"],
        ["encode", ".", "--tokenizer", ".", "--out", "x"],
        ["decode", ".", "--tokenizer", ".", "--out", "x"],
        ["reconstruct", ".", "--tokenizer", ".", "--out", "x"],
    ],
)
def test_commands_that_compute_keep_their_programs(arguments, monkeypatch):
    def asked():
        raise Asked

    monkeypatch.setattr(cache, "use_compilation_cache", asked)
    with pytest.raises(Asked):
        (main if arguments[0] in main.VERBS else cli).main(arguments)
