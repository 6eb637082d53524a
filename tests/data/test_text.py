import json
import warnings

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.data.text import EOS, PAD, UNKNOWN, TextTokenizer

COLOURS, THINGS = ("red", "green", "blue"), ("circle", "square", "cross")
CAPTIONS = [f"a {s} {c} {t} above a {s} {d}" for s in ("small", "large") for c in COLOURS for t in THINGS for d in THINGS]


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, 80)


def test_words_of_small_captions_become_single_tokens(text):
    assert text.vocabulary == 80
    ids, valid = text.encode(["a small red circle above a small cross"], 12)
    assert valid.sum() == 9 and UNKNOWN not in ids


def test_padded_on_the_left_and_ended(text):
    ids, valid = text.encode(["a red cross", "", "a small blue square"], 7)
    assert ids.shape == valid.shape == (3, 7) and ids.dtype == np.int32 and valid.dtype == bool
    assert ids[1].tolist() == [PAD] * 6 + [EOS] and valid[1].tolist() == [False] * 6 + [True]
    assert (ids[:, -1] == EOS).all() and (ids[~valid] == PAD).all() and (ids[valid] != PAD).all()
    assert valid.sum(1).tolist() == [4, 1, 5] and (np.diff(valid.astype(int)) >= 0).all()


def test_other_lengths_only_move_the_padding(text):
    short, long = text.encode(["a red cross"], 4)[0], text.encode(["a red cross"], 9)[0]
    assert long[0, 5:].tolist() == short[0].tolist()


def test_cut_texts_end_with_eos_and_are_named(text):
    with pytest.warns(
        UserWarning, match=r"cut to 4 tokens: the prompt 'a small red circle above a small cross', whose last 5 tokens"
    ):
        ids, valid = text.encode(["a small red circle above a small cross"], 4)
    assert valid.all() and ids[0, -1] == EOS and ids[0, :3].tolist() == text.encode(["a small red"], 4)[0][0, :3].tolist()
    with pytest.warns(UserWarning, match=r"2 of 3 prompts; most of all the prompt 'a small red circle"):
        text.encode(["a", "a small red circle above", "a small red cross"], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode(["a small red circle above"], 4, warn=False)
        ids, _ = text.encode(["a small red circle"], 5)  # exactly as long
        text.encode([""], 1)
    with pytest.raises(UserError, match="at least one token"):
        text.encode(["a"], 0)


def test_case_and_spaces_do_not_matter(text):
    rows, _ = text.encode(["a red cross", "  A Red\n\tCROSS ", "ａ red cross"], 8)
    assert (rows == rows[0]).all()
    assert text.decode(rows[0]) == "a red cross"


def test_characters_that_it_does_not_know(text):
    ids, valid = text.encode(["a ✈ red 日本"], 8)
    assert (ids[valid] == UNKNOWN).sum() == 2 and ids.max() < text.vocabulary


def test_training_is_deterministic_and_quiet(capfd):
    models = [TextTokenizer.train(iter(CAPTIONS), 60) for _ in range(2)]
    assert models[0].model == models[1].model
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("captions", [["a"], ["Ein Bär 🐻", "日本の旗", "флаг"], ["x\ny", "", "z\0z"], ["same"] * 100])
@pytest.mark.parametrize("vocabulary", [8, 12, 30, 5000])
def test_any_vocabulary_works_for_any_captions(captions, vocabulary):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = TextTokenizer.train(captions, vocabulary)
    assert text.vocabulary <= vocabulary
    assert any("pieces of text, not" in str(w.message) for w in caught) == (text.vocabulary < vocabulary)
    ids, valid = text.encode(captions, 40, warn=False)
    assert ids.max() < text.vocabulary and (ids[:, -1] == EOS).all()
    if vocabulary == 5000:
        assert UNKNOWN not in ids


def test_nothing_to_learn_from():
    for captions in ([], ["", " \n"], ["\u200b"]):
        with pytest.raises(UserError, match="no captions"):
            TextTokenizer.train(captions, 50)
    with pytest.raises(UserError, match="too small"):
        TextTokenizer.train(CAPTIONS, 7)


def test_save_and_load(text, tmp_path):
    text.save(tmp_path)
    text.save(tmp_path / "other.model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.model", "text.model"]
    for path in (tmp_path, tmp_path / "text.model", tmp_path / "other.model"):
        loaded = TextTokenizer.load(path)
        assert np.array_equal(loaded.encode(CAPTIONS, 16)[0], text.encode(CAPTIONS, 16)[0])
    with pytest.raises(UserError, match="no text tokenizer .*none/text.model"):
        TextTokenizer.load(tmp_path / "none")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.model: this is no SentencePiece model"):
        TextTokenizer.load(tmp_path / "bad.model")


def test_models_of_others_are_refused(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=30, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(UserError, match="not trained by mmgen"):
        TextTokenizer(model.getvalue())


def test_emoji_captions(shared):
    captions = [json.loads(line)["text"] for line in (shared("emoji/train") / "metadata.jsonl").read_text().splitlines()]
    text = TextTokenizer.train(captions, 512)
    ids, valid = text.encode(captions, 24)
    assert text.vocabulary == 512 and UNKNOWN not in ids and valid.sum(1).mean() < 9
