"""From pictures to figures, by a network of random weights: the numbers mean nothing, the path they take is what is tested."""

import json

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
import thin_inception
from mmgen_tokenizers import cli
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation import inception, protocols, results, scoring
from mmgen_tokenizers.evaluation.results import score
from mmgen_tokenizers.evaluation.statistics import Moments, frechet, inception_score, kernel_distance, precision_recall
from mmgen_tokenizers.files import save_arrays, unflatten

pytestmark = pytest.mark.filterwarnings("ignore:.* features. the covariance has not full rank")
SIZE = 12


def pictures(seed, count):
    """Smooth ones, so that two sets have something in common."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 256, (count, 2, 2, 3))
    t = np.linspace(0, 1, SIZE)
    return np.einsum("nijc,iy,jx->nyxc", corners, [1 - t, t], [1 - t, t]).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file; its program is compiled once for all tests."""
    with thin_inception.installed(tmp_path_factory.mktemp("inception")) as file:
        yield file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.npz, and b.npz, another draw."""
    folder = tmp_path_factory.mktemp("sets")
    for name, seed, count in (("a", 0, 12), ("b", 1, 10)):
        np.savez(folder / f"{name}.npz", arr_0=pictures(seed, count))
    return folder


@pytest.fixture(scope="module")
def scored(folder, weights):
    return lambda a, b, **more: score(folder / a, folder / b, weights, **more)


def test_figures_are_those_of_the_features(folder, weights, scored):
    found = scored("a.npz", "b.npz")
    a, b = (jax.jit(inception.features)(inception.load(weights), np.load(folder / f"{x}.npz")["arr_0"]) for x in "ab")
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    gaussians = [[Moments.of(np.asarray(x)).gaussian for x in (f.pool, f.spatial)] for f in (a, b)]
    assert values["fid"] == pytest.approx(frechet(gaussians[0][0], gaussians[1][0]), rel=1e-3)
    assert values["sfid"] == pytest.approx(frechet(gaussians[0][1], gaussians[1][1]), rel=1e-3)
    assert values["inception_score"] == pytest.approx(inception_score(np.asarray(a.probabilities))[0], rel=1e-4)
    assert values["kid"] == pytest.approx(kernel_distance(np.asarray(a.pool), np.asarray(b.pool))[0], rel=1e-2)
    within, covered = precision_recall(np.asarray(a.pool), np.asarray(b.pool))
    assert (values["precision"], values["recall"]) == (within.mean(), covered.mean())
    for name in ("fid", "inception_score", "precision", "recall", "kid"):
        low, high = found["figures"][name]["interval"]
        assert low <= values[name] <= high
    assert found["samples"] == {"from": str(folder / "a.npz"), "pictures": 12, "size": [SIZE, SIZE]}
    assert found["reference"]["pictures"] == found["reference"]["pictures_for_precision_and_recall"] == 10
    assert found["versions"]["jax"] == jax.__version__ and len(found["network"]["fingerprint"]) == 16
    json.dumps(found)
    assert "FID" in results.explain(found).splitlines()[0]


def test_known_answers(scored):
    same, other = (scored("a.npz", f"{name}.npz")["figures"] for name in "ab")
    assert abs(same["fid"]["value"]) < 1e-3 and same["precision"]["value"] == same["recall"]["value"] == 1
    assert other["fid"]["value"] > 1


def test_statistics_files_stand_for_the_pictures(folder, scored, tmp_path):
    direct = scored("a.npz", "b.npz", statistics=tmp_path / "b.npz")
    again = scored("a.npz", tmp_path / "b.npz")
    assert again["figures"] == direct["figures"]
    assert again["reference"] == direct["reference"] | {"from": str(tmp_path / "b.npz"), "statistics": True}
    held = dict(np.load(tmp_path / "b.npz"))
    adm = {name: held[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(tmp_path / "adm.npz", arr_0=np.load(folder / "b.npz")["arr_0"], **adm)
    assert scored("a.npz", tmp_path / "adm.npz")["figures"] == direct["figures"]
    np.savez(tmp_path / "bare.npz", mu=adm["mu"], sigma=adm["sigma"])  # as pytorch-fid writes them
    bare = scored("a.npz", tmp_path / "bare.npz")["figures"]
    assert set(bare) == {"fid", "inception_score"} and bare["fid"] == direct["figures"]["fid"]


def test_sets_that_do_not_compare(folder, scored, tmp_path):
    def refused(message, a="a.npz", b="b.npz", **more):
        with pytest.raises(UserError, match=message):
            scored(a, b, **more)

    scored("a.npz", "b.npz", statistics=tmp_path / "b.npz")
    held = dict(np.load(tmp_path / "b.npz"))
    np.savez(tmp_path / "other.npz", **held | {"network": np.array("0" * 16)})
    refused("statistics of the network 0000000000000000", b=tmp_path / "other.npz")
    np.savez(tmp_path / "wide.npz", mu=np.zeros(768), sigma=np.eye(768))
    refused("has 768 features a picture, the network gives 128: it is of another network", b=tmp_path / "wide.npz")
    np.savez(tmp_path / "size.npz", **held | {"size": np.array([64, 64])})
    refused("are of 12 x 12 and of 64 x 64 pixels", b=tmp_path / "size.npz")
    np.savez(tmp_path / "few.npz", arr_0=pictures(0, 3))
    refused("3 pictures are too few to compare sets: give at least 4", a=tmp_path / "few.npz")
    refused("is a file of statistics already", b=tmp_path / "size.npz", statistics=tmp_path / "new.npz")
    (tmp_path / "text.npz").write_text("no archive")
    refused("is no .npz of pictures or statistics", b=tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros((4, 8, 8, 3), np.uint8))
    refused("is one array: put pictures into an .npz", b=tmp_path / "one.npy")


def test_few_pictures_are_warned_of():
    with pytest.warns(
        UserWarning, match="40 pictures for 128 features: the covariance has not full rank.*KID has no such bias"
    ):
        scoring.warn_of_few(40, 128)


# Protocols -----------------------------------------------------------------------------------------------------------


def test_labels_of_protocols():
    each = protocols.draw_labels(protocols.named("var_256"), 10, 200, seed=0)
    assert np.bincount(each).tolist() == [20] * 10 and set(each[:10]) == set(range(10))
    drawn = protocols.draw_labels(protocols.named("llamagen_c2i_256"), 10, 5000, seed=0)
    assert set(drawn) == set(range(10)) and np.abs(np.bincount(drawn) - 500).max() > 5
    np.testing.assert_array_equal(drawn[:77], protocols.draw_labels(protocols.named("adm_256"), 10, 77, seed=0))
    with pytest.raises(UserError, match="Did you mean 'var_256'"):
        protocols.named("var256")


def test_pictures_of_protocols():
    x = np.full((1, 256, 256, 3), 100.6 / 127.5 - 1, np.float32)
    assert protocols.finish(protocols.named("rfid_val_256"), x)[0, 0, 0, 0] == 101
    assert protocols.finish(protocols.named("rar_256"), x)[0, 0, 0, 0] == 100
    ramp = np.broadcast_to(np.linspace(-1, 1, 384, dtype=np.float32)[:, None, None], (1, 384, 384, 3))
    found = protocols.finish(protocols.named("llamagen_c2i_256"), ramp)
    assert found.shape == (1, 256, 256, 3)
    np.testing.assert_allclose(found[0, 2:-2, 0, 0], 255 / 383 * ((np.arange(256) + 0.5) * 1.5 - 0.5)[2:-2], atol=0.51)
    with pytest.raises(UserError, match="draws pictures of 384 x 384; the protocol is of 256 and resizes none"):
        protocols.finish(protocols.named("var_256"), ramp)


# Tokenizers ----------------------------------------------------------------------------------------------------------


def test_evaluate_a_tokenizer(folder, weights, scored, tmp_path, capsys):
    palette = ((0, 0, 0), (90, 90, 90), (200, 200, 200), (255, 0, 0))
    mt.Tokenizer(mt.Pixels(palette, SIZE), {}).save(tmp_path / "tok")
    arguments = ["evaluate", tmp_path / "tok", "--data", folder / "a.npz", "--out", tmp_path / "found.json"]
    more = ["--inception", weights, "--save-statistics", tmp_path / "a.npz"]
    assert cli.main([str(a) for a in arguments + more]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    tok, before = mt.load(tmp_path / "tok"), np.load(folder / "a.npz")["arr_0"]
    ids = tok.encode(before)
    after = np.array(palette, np.uint8)[ids].reshape(before.shape)
    error = np.square(before.astype(float) - after).mean((1, 2, 3))
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    assert figures["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), rel=1e-4)
    share = np.bincount(ids.reshape(-1), minlength=4) / ids.size
    assert figures["usage"] == (share > 0).mean()
    assert figures["perplexity"] == pytest.approx(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))
    np.savez(tmp_path / "after.npz", arr_0=after)
    expected = scored(tmp_path / "after.npz", tmp_path / "a.npz")["figures"]["fid"]
    assert figures["rfid"] == pytest.approx(expected["value"], rel=1e-3) and figures["rfid"] > 0
    assert 0 < figures["ssim"] < 1 and found["pictures"]["pictures"] == 12
    out = capsys.readouterr().out
    assert "rFID" in out and "share of the codebook in use" in out


def test_evaluate_says_what_is_missing(folder, weights, tmp_path, capsys):
    mt.Tokenizer(mt.Pixels(image_size=SIZE), {}).save(tmp_path / "tok")
    save_arrays(tmp_path / "vgg", unflatten({"conv": np.zeros(3)}))
    for extra, message in (
        (["--data", "nowhere"], "there is no nowhere"),
        (
            ["--data", folder / "a.npz", "--inception", tmp_path / "vgg" / "model.safetensors"],
            "lacks Conv2d_1a_3x3.conv.weight",
        ),
        (["--data", folder / "a.npz", "--lpips", tmp_path / "vgg" / "model.safetensors"], "LPIPS"),
        (["--data", folder / "a.npz", "--save-statistics", tmp_path / "s.npz"], "give its weights"),
    ):
        assert cli.main([str(a) for a in ["evaluate", tmp_path / "tok", *extra]]) == 2
        assert message in capsys.readouterr().err
