"""convert --check: a mistake is named where it is made."""

import dataclasses
import json
import re

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers import cli
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import flatten
from mmgen_tokenizers.pretrained import FAMILIES, check, export, llamagen
from mmgen_tokenizers.pretrained.check import explain, table_of
from safetensors.numpy import save

NET = mt.CNN(4, (1, 2), 1, 2, attention_levels=(1,), latent=4, groups=2)
CONFIG = mt.VQGAN(NET, mt.VQ(size=32, dim=4), image_size=8)
SETTINGS = {"group_norm_groups": 2, "image_size": 8}


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer(CONFIG, vqgan.init(CONFIG, jax.random.key(0)), llamagen.FAMILY)


@pytest.fixture(scope="module")
def io(tok):
    """What every layer of the reference would have given, in PyTorch's layout: our own, since parity is tested elsewhere."""
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)
    theirs = llamagen.to_reference(tok.params, CONFIG)
    names = [name.removesuffix(".weight") for name in theirs if name.endswith(".weight") and "embedding" not in name]
    ours = {check._layer(table_of(tok), name): name for name in names}
    encoded, ids, decoded, picture = check._run(tok, {"image": image}, ours)
    heard = {ours[name]: as_torch(array) for part in (encoded, decoded) for name, array in part.items()}
    assert heard.keys() == set(names)  # each layer that has weights
    return {"image": image, "ids": ids.reshape(2, 4, 4), "recon": as_torch(picture), **heard}


def as_torch(array):
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array.swapaxes(0, 1)


def test_all_layers_agree_in_the_order_of_computation(tok, io):
    lines = explain(tok, table_of(tok), {**io, "notes": np.zeros(3)}).splitlines()
    assert lines[-1] == f"all {len(io) - 1} agree" and lines[-2].endswith("not compared  notes")
    names = [line.split()[-1] for line in lines[:-2]]
    order = ["encoder.conv_in", "encoder.conv_blocks.0.downsample.conv", "quant_conv", "ids", "decoder.conv_in", "recon"]
    assert [name for name in names if name in order] == order


def test_a_wrong_weight_and_a_wrong_switch_are_the_first_to_be_named(tok, io):
    params = jax.tree.map(np.asarray, tok.params)
    norm = params["encoder"]["levels"]["0"]["blocks"]["0"]["norm2"]
    norm["bias"] = norm["bias"] + 0.01
    named = r"^encoder.conv_blocks.0.res.0.norm2 \(here encoder.levels.0.blocks.0.norm2\) is the first to diverge, by .*e-0[23]"
    with pytest.raises(UserError, match=named + ".* 3 before it agree, the last of them encoder.conv_blocks.0.res.0.conv1"):
        explain(mt.Tokenizer(CONFIG, params), table_of(tok), io)
    other = dataclasses.replace(CONFIG, network=dataclasses.replace(NET, down="symmetric"))
    with pytest.raises(UserError, match="^encoder.conv_blocks.0.downsample.conv "):
        explain(mt.Tokenizer(other, tok.params), table_of(tok), io)


def test_decoding_starts_from_the_ids_given(tok, io):
    """So that one id that rounds to another code does not blame the decoder."""
    ids = (io["ids"] + 1) % 32
    picture = as_torch(tok.decode(ids.reshape(2, 16)))
    found = {
        row.name: row.error
        for row in check.compare(tok, table_of(tok), {"image": io["image"], "ids": ids, "recon": picture})[0]
    }
    assert found["ids"] == 1 and found["recon"] < check.TOLERANCE


def test_by_command(tok, io, tmp_path, capsys):
    export(tok, tmp_path / "reference")
    np.savez(tmp_path / "io.npz", **io)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    command = ["convert", "llamagen-vq", str(tmp_path / "reference" / "model.safetensors")]
    command += ["--config", str(tmp_path / "config.json"), "--check", str(tmp_path / "io.npz"), "--out"]
    assert cli.main([*command, str(tmp_path / "tok")]) == 0
    assert f"all {len(io) - 1} agree" in capsys.readouterr().out
    assert mt.load(tmp_path / "tok").fingerprint == tok.fingerprint
    ids = io["ids"].copy()
    ids[0, 0, 0] ^= 1
    np.savez(tmp_path / "io.npz", **{**io, "ids": ids})
    assert cli.main([*command, str(tmp_path / "no")]) == 2
    assert "error: ids is the first to diverge, by 3.1e-02" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_what_cannot_be_compared_is_said(tok, io, tmp_path):
    table = table_of(tok)
    with pytest.raises(UserError, match="must be an array `image`"):
        explain(tok, table, {"ids": io["ids"]})
    with pytest.raises(UserError, match="nothing could be compared: of encoder.conv1"):
        explain(tok, table, {"image": io["image"], "encoder.conv1": np.zeros(3)})
    with pytest.raises(UserError, match="^encoder.conv_in .* 0 before it agree$"):
        explain(tok, table, {"image": io["image"], "encoder.conv_in": np.full_like(io["encoder.conv_in"], np.nan)})
    (tmp_path / "io.npz").write_text("no")
    with pytest.raises(UserError, match="io.npz as .npz"):
        explain(tok, table, tmp_path / "io.npz")


def fork(name):
    """A name of LlamaGen's in the README's fork."""
    for theirs, forked in (
        ("conv_blocks", "stages"),
        (".res.", ".blocks."),
        (".mid.", ".neck."),
        ("quantize.embedding", "codebook"),
    ):
        name = name.replace(theirs, forked)
    return name


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_its_table(tok, family):
    rows = table_of(mt.Tokenizer(CONFIG, tok.params, family))
    assert any(theirs.startswith("encoder.") and ours.startswith("encoder.") for theirs, ours, _ in rows)


def test_the_fork_of_the_readme(tok, io, tmp_path, monkeypatch, repository, capsys):
    """The script of "How to add one", run on weights and activations under a fork's names."""
    text = (repository / "tokenizers" / "README.md").read_text()
    script = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "mine.pt" in block)
    assert len(script.splitlines()) <= 30
    script, found = re.subn(r"(?m)^config = .*$", "config = CONFIG", script)
    assert found == 1 and "\nconfig" in script
    theirs = llamagen.to_reference(tok.params, CONFIG)
    forked = {fork(name): np.ascontiguousarray(array) for name, array in theirs.items() if "codebook_used" not in name}
    assert not any("conv_blocks" in name for name in forked)
    (tmp_path / "mine.pt").write_bytes(save(forked))  # what a file is, its content says
    np.savez(tmp_path / "io.npz", **{name if name in check.GIVEN else fork(name): array for name, array in io.items()})
    monkeypatch.chdir(tmp_path)
    exec(script, {"CONFIG": CONFIG})
    assert f"all {len(io) - 1} agree" in capsys.readouterr().out
    made = mt.load(tmp_path / "models" / "mine")
    assert flatten(made.params).keys() == flatten(tok.params).keys() and made.fingerprint == tok.fingerprint
