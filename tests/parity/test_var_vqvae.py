"""VAR's tokenizer against numbers of its own code, and the preset against the names and shapes of the published file."""

import json

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import flatten, read_checkpoint, save_arrays, unflatten
from mmgen_tokenizers.pretrained import var
from mmgen_tokenizers.pretrained.from_weights import fitted
from mmgen_tokenizers.quantizers import multiscale, resize

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(parity):
    """(folder, arrays, config, tokenizer)."""
    folder = parity("var_vqvae")
    config = json.loads((folder / "meta.json").read_text())["config"]
    with np.load(folder / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return folder, arrays, config, mt.convert("var-vqvae", folder / "vae.safetensors", config=config)


def channels_last(array):
    return array.transpose(*range(array.ndim - 3), -2, -1, -3)


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance


def sums(tok, ids):
    """What the decoder gets after each scale."""
    return jax.jit(lambda p: multiscale.prefixes(tok.config.quantizer, p, ids, 4, 4))(tok.params["quantizer"])


def test_resizes_are_those_of_pytorch(fixture):
    _, io, _, _ = fixture
    for kind, sizes in (("bicubic", (4, 16)), ("area", (13, 3))):
        for size in sizes:
            want = channels_last(io[f"{kind}_out{size}"])
            close(getattr(resize, kind)(channels_last(io[f"{kind}_in"]), (size, size)), want, 1e-5)


def test_ids_and_sums_after_each_scale(fixture):
    _, io, _, tok = fixture
    assert tok.layout.scales == ((1, 1), (2, 2), (3, 3), (4, 4))
    image = channels_last(io["image"])
    ids = tok.encode(image)
    np.testing.assert_array_equal(ids, io["ids"])
    close(jax.jit(lambda p: vqgan.encode_latents(tok.config, p, image))(tok.params), channels_last(io["f"]))
    close(np.stack(sums(tok, ids)), channels_last(io["fhat_stages"]))


def test_pictures_of_all_scales_and_of_the_first_two(fixture):
    _, io, _, tok = fixture
    close(tok.decode(io["ids"]), channels_last(io["recon"]))
    close(tok.decode(io["ids"][:, :5]), channels_last(io["recon_stage1"]))


def test_what_the_transformer_reads(fixture, parity):
    _, io, _, tok = fixture
    close(tok.next_input(io["ids"]), io["var_input"])
    for k, until in ((14, 29), (5, 13), (1, 4)):
        close(tok.next_input(io["ids"][:, :k]), io["var_input"][:, :until])
    for name in ("var", "var_shared_aln"):
        with np.load(parity(name) / "io.npz") as generator:
            close(tok.next_input(generator["ids"]), generator["var_input"])


def test_pictures_of_generated_ids(fixture, parity):
    tok = fixture[3]
    with np.load(parity("var") / "io.npz") as io:
        for name in ("gen_cfg1.5", "gen_cfg4.0"):
            ids = io[f"{name}_ids"]
            close(sums(tok, ids)[-1], channels_last(io[f"{name}_fhat"]))
            close(tok.decode(ids) / 2 + 0.5, channels_last(io[f"{name}_image"]))


def test_configuration_is_read_off_the_weights(fixture, tmp_path):
    folder, _, config, tok = fixture
    again = mt.convert("var-vqvae", folder / "vae.safetensors", tmp_path / "tok", {"patch_nums": [1, 2, 3, 4]})
    loaded = mt.load(tmp_path / "tok")
    assert again.config == tok.config == loaded.config and loaded.source == "var-vqvae" and tok.config.image_size == 64
    np.testing.assert_array_equal(loaded.encode(channels_last(fixture[1]["image"])), fixture[1]["ids"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"patch_nums": [1, 2, 4]}, "has 4 scales, not 3: pass its patch_nums"),
        ({"V": 4096}, "the config has V 4096"),
        ({"share_quant_resi": 1}, "share_quant_resi 1"),
        ({"using_znorm": True}, "using_znorm True"),
        ({"patchnums": [1]}, "Did you mean 'patch_nums'"),
    ],
)
def test_a_wrong_config_is_refused(fixture, change, words):
    folder, _, config, _ = fixture
    with pytest.raises(UserError, match=words):
        mt.convert("var-vqvae", folder / "vae.safetensors", config=config | change)


def test_another_tokenizer_is_refused(fixture, tmp_path):
    state = read_checkpoint(fixture[0] / "vae.safetensors")
    plain = {name: array for name, array in state.items() if "quant_resi" not in name}
    save_arrays(tmp_path, unflatten(plain))
    with pytest.raises(UserError, match="is it a tokenizer of var-vqvae"):
        mt.convert("var-vqvae", tmp_path / "model.safetensors")


def test_preset_has_the_names_and_shapes_of_the_published_file(parity):
    """Full size, nothing allocated but zeros that the system never backs with memory."""
    keys = json.loads((parity("keys") / "var_vqvae_ch160v4096z32.json").read_text())["keys"]
    published = {key: np.broadcast_to(np.float32(0), shape) for key, (_, shape) in keys.items()}
    preset = var.PRESETS["VAR"]
    assert var.configure(None, published) == preset
    ours = flatten(fitted(preset, published, var.table()))  # raises where a name or a shape differs
    assert {n: a.shape for n, a in ours.items()} == {n: leaf.shape for n, leaf in flatten(shapes(preset)).items()}
    dropped = published[var.HITS].size
    assert sum(a.size for a in ours.values()) == sum(a.size for a in published.values()) - dropped == 108_948_355
    larger = var.configure({"patch_nums": [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]}, published)
    assert larger.image_size == 512
