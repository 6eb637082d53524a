"""The command mmgen-tokenizers, verb by verb, in this process."""

import re
import sys

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers import cli
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import save_arrays, unflatten
from mmgen_tokenizers.pictures import read_picture, write_png
from mmgen_tokenizers.pretrained import FAMILIES, export
from mmgen_tokenizers.pretrained.published import KNOWN, PUBLISHED
from mmgen_tokenizers.shards import ShardReader, ShardWriter

NET = mt.CNN(4, (1, 1), 1, 2, attention_levels=(1,), latent=4, groups=2)
CONFIG = mt.VQGAN(NET, mt.VQ(size=32, dim=4), image_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tok/: a tokenizer; pictures/: three good ones, of which one in a folder, and two damaged."""
    folder, rng = tmp_path_factory.mktemp("cli"), np.random.default_rng(0)
    mt.Tokenizer(CONFIG, vqgan.init(CONFIG, jax.random.key(0))).save(folder / "tok")
    for name, shape in (("b.png", (8, 8)), ("a.png", (20, 12)), ("deep/c.png", (9, 30))):
        write_png(folder / "pictures" / name, rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    (folder / "pictures" / "notes.txt").write_text("no picture")
    damaged = (folder / "pictures" / "b.png").read_bytes()
    (folder / "pictures" / "z_damaged.png").write_bytes(damaged[: len(damaged) // 2])
    return folder


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def test_encode_then_decode(folder, capsys):
    codes, out, tok = folder / "codes", folder / "out", mt.load(folder / "tok")
    assert run("encode", folder / "pictures", "--tokenizer", folder / "tok", "--out", codes, "--square") == 0
    said = capsys.readouterr()
    assert "skipped" in said.err and "z_damaged.png" in said.err
    assert said.out == f"wrote {codes}: 3 pictures, 4 x 4 = 16 ids of 32 codes; 1 skipped that cannot be read\n"
    reader = ShardReader(codes)
    assert (len(reader), reader.layout, reader.tokenizer, reader.mixed) == (3, tok.layout, tok.fingerprint, False)
    assert [reader[i]["name"] for i in range(3)] == ["a.png", "b.png", "deep/c.png"]
    want = tok.encode(read_picture(folder / "pictures/b.png")[None])
    np.testing.assert_array_equal(reader[1]["ids"], want)
    assert run("decode", codes, "--tokenizer", folder / "tok", "--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["00000_a.png", "00001_b.png", "00002_c.png"]
    drawn = read_picture(out / "00001_b.png") / 127.5 - 1
    np.testing.assert_allclose(drawn, tok.decode(want)[0], atol=1 / 255 + 1e-6)
    assert "already holds" in failing(
        capsys, "encode", folder / "pictures", "--tokenizer", folder / "tok", "--out", codes, "--square"
    )


def test_decode_what_mmgen_sampled(folder, capsys):
    tok, out = mt.load(folder / "tok"), folder / "sampled"
    ids = np.random.default_rng(0).integers(0, 32, (3, 16))
    np.savez(folder / "ids.npz", tokens=ids, labels=np.arange(3))
    assert run("decode", folder / "ids.npz", "--tokenizer", folder / "tok", "--out", out, "--batch", 2) == 0
    assert f"wrote 3 pictures to {out}" in capsys.readouterr().out
    drawn = np.stack([read_picture(out / f"0000{i}.png") for i in range(3)]) / 127.5 - 1
    np.testing.assert_allclose(drawn, tok.decode(ids), atol=1 / 255 + 1e-6)
    np.savez(folder / "other.npz", arr_0=ids)
    wanted = ("--tokenizer", folder / "tok", "--out", folder / "no")
    assert "other.npz has no array 'tokens' (it has arr_0)" in failing(capsys, "decode", folder / "other.npz", *wanted)
    assert "a.png has no array 'tokens'" in failing(capsys, "decode", folder / "pictures/a.png", *wanted)
    np.savez(folder / "larger.npz", tokens=ids + 30)
    assert "but the codebook has codes 0 to 31" in failing(capsys, "decode", folder / "larger.npz", *wanted)


def test_pixels_of_a_palette(folder, capsys):
    assert run("pixels", "--size", 8, "--palette", 4, "--pictures", folder / "pictures", "--out", folder / "pixels") == 0
    assert "8 x 8 pixels -> 8 x 8 = 64 ids of 4 codes" in capsys.readouterr().out
    assert len(mt.load(folder / "pixels").config.palette) == 4
    assert "holds a model already" in failing(capsys, "pixels", "--size", 8, "--out", folder / "pixels")
    assert "go together" in failing(capsys, "pixels", "--palette", 4, "--out", folder / "no")
    assert "2 to 256" in failing(capsys, "pixels", "--palette", 300, "--pictures", folder / "pictures", "--out", folder / "no")


def test_reconstruct_draws_what_is_lost_and_says_psnr(folder, capsys):
    grid = folder / "grid.png"
    assert (
        run("reconstruct", folder / "pictures/b.png", folder / "pictures/a.png", "--tokenizer", folder / "tok", "--out", grid)
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].endswith("b.png") and "mean of 2" in lines[2]
    drawn = read_picture(grid)
    assert drawn.shape == (64 + 14, 2 * 3 * 64 + 2, 3)  # eight times as large, that one sees them and their captions
    white = (drawn[64:] == 255).all((0, 2))
    assert white[150:194].all() and not white[:150].all() and not white[194:].all()  # which do not run together
    original, small = read_picture(folder / "pictures/b.png"), drawn[:64:8, ::8]
    np.testing.assert_array_equal(drawn[:64, :192].reshape(8, 8, 24, 8, 3)[:, 3, :, 5], small[:, :24])
    np.testing.assert_array_equal(small[:, :8], original)
    again = small[:, 8:16].astype(float)
    assert float(lines[0].split()[0]) == pytest.approx(10 * np.log10(255**2 / ((again - original) ** 2).mean()), abs=0.05)


def test_convert_and_info(folder, capsys):
    reference, out = folder / "reference", folder / "converted"
    export(mt.load(folder / "tok"), reference)
    (folder / "config.json").write_text('{"group_norm_groups": 2, "image_size": 8}')
    command = ("convert", "llamagen-vq", reference / "model.safetensors", "--out", out, "--config", folder / "config.json")
    assert run(*command) == 0
    assert "holds a model already" in failing(capsys, *command)
    assert run(*command, "--overwrite") == 0
    assert run("info", out) == 0
    text = capsys.readouterr().out
    assert "8 x 8 pixels -> 4 x 4 = 16 ids of 32 codes" in text and "llamagen-vq" in text and '"multipliers"' in text
    converted, made = mt.load(out), mt.load(folder / "tok")
    assert converted.fingerprint == made.fingerprint and converted.source == "llamagen-vq"


def test_list_names_weights_and_how_they_were_verified(capsys):
    assert run("list") == 0
    text, legend = capsys.readouterr().out.split("\n\n")
    assert "shapes:" in legend
    rows = {cells[0]: cells[1:] for cells in (re.split("  +", line) for line in text.splitlines()[1:])}
    assert list(rows) == [*PUBLISHED, *KNOWN]
    assert rows["IBQ-1024"] == ["ibq", "Apache-2.0", "256", "1024", "2.24", "numbers, shapes"]
    assert rows["chameleon"][4:] == ["-", "shapes"] and rows["UniTok"] == ["not yet", "MIT", "256 x 8", "4096", "0.41", "-"]
    assert {weights.family for weights in PUBLISHED.values()} == FAMILIES.keys()
    assert not any(weights.family or weights.verified for weights in KNOWN.values())


def test_the_readme_has_the_same_table(capsys, repository):
    assert run("list", "--markdown") == 0
    assert capsys.readouterr().out in (repository / "tokenizers" / "README.md").read_text()


@pytest.mark.parametrize("verb", [*cli.VERBS, None])
def test_help_is_complete_and_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as done:
        sys.exit(cli.main([verb, "--help"] if verb else []))
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert f"  mmgen-tokenizers {verb or 'convert'}" in text.split("example:\n")[1]


def failing(capsys, *arguments):
    """The one line that a mistake is answered with."""
    assert run(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("skipped")]
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_mistakes_are_answered_with_the_nearest_right_word(folder, capsys):
    tok = ("--tokenizer", folder / "tok")
    assert "Did you mean 'encode'?" in failing(capsys, "encoed", "x")
    assert "Did you mean '--tokenizer'?" in failing(capsys, "encode", "x", *tok, "--out", "y", "--tokeniser", "z")
    assert "Did you mean 'pictures'?" in failing(capsys, "encode", folder / "picture", *tok, "--out", "y.npz")
    assert "Did you mean 'tok'?" in failing(capsys, "info", folder / "tpk")
    assert "--out" in failing(capsys, "encode", "x", *tok)
    assert "Did you mean 'group_norm_groups'?" in _wrong_config(folder, capsys, '{"group_norm_group": 2}')
    assert "not JSON" in _wrong_config(folder, capsys, "{")


def _wrong_config(folder, capsys, text):
    reference = folder / "some_reference"
    export(mt.load(folder / "tok"), reference)
    (folder / "wrong.json").write_text(text)
    command = (
        "convert",
        "llamagen-vq",
        reference / "model.safetensors",
        "--out",
        folder / "no",
        "--config",
        folder / "wrong.json",
    )
    return failing(capsys, *command)


def test_unusable_input(folder, capsys):
    tok = ("--tokenizer", folder / "tok", "--out", folder / "x")
    (folder / "bad").mkdir()
    (folder / "bad" / "a.png").write_bytes(b"no picture")
    assert "none of the pictures" in failing(capsys, "encode", folder / "bad", *tok)
    assert "none of the pictures" in failing(capsys, "reconstruct", folder / "bad/a.png", *tok)
    (folder / "empty").mkdir()
    assert "no pictures in" in failing(capsys, "encode", folder / "empty", *tok)
    assert "multiple of 2" in failing(capsys, "reconstruct", folder / "pictures/a.png", *tok, "--size", "7")
    assert "are not here" in failing(capsys, "decode", folder / "pictures", *tok)
    with ShardWriter(folder / "mine", mt.load(folder / "tok").fingerprint, mt.load(folder / "tok").layout) as writer:
        writer.add(np.zeros((1, 16), int))
    there = ("--tokenizer", folder / "tok", "--out", folder / "bad" / "a.png")
    assert f"File exists: {folder}/bad/a.png" in failing(capsys, "decode", folder / "mine", *there)
    assert "--batch: a whole number from 1 on is" in failing(capsys, "decode", folder / "mine", *tok, "--batch", "0")
    with ShardWriter(folder / "others", "abc", mt.load(folder / "tok").layout) as writer:
        writer.add(np.zeros((1, 16), int))
    assert "another tokenizer (abc)" in failing(capsys, "decode", folder / "others", *tok)
    assert "no tensors" in failing(capsys, "convert", "llamagen-vq", _empty(folder), "--out", folder / "no")
    save_arrays(folder / "foreign", unflatten({"conv.weight": np.zeros(2, np.float32)}))
    assert "is it a tokenizer of llamagen-vq" in failing(
        capsys, "convert", "llamagen-vq", folder / "foreign/model.safetensors", "--out", folder / "no"
    )
    assert not (folder / "no").exists()


def _empty(folder):
    save_arrays(folder / "empty_weights", {})
    return folder / "empty_weights/model.safetensors"
