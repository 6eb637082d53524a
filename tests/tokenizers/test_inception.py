"""InceptionV3 of 2015 at a sixteenth of its width, against an evaluation in NumPy that knows only the file's tensors."""

import jax
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation import inception
from mmgen_tokenizers.files import save_arrays, unflatten
from thin_inception import random_state

SIDE = 107  # the smallest whose last blocks are not of one pixel, where a maximum is an average


@pytest.fixture(scope="module")
def state():
    return random_state()


# The network in NumPy: channels first, batch norm by its formula ------------------------------------------------------


def windows(x, kernel, stride, pad, fill):
    """[C, h, w, kh, kw]"""
    x = np.pad(x, ((0, 0), (pad[0],) * 2, (pad[1],) * 2), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::stride, ::stride]


class Reference:
    """Blocks as torchvision writes them, with the changes of the graph of 2015."""

    def __init__(self, state):
        self.state = {name: value.astype(np.float64) for name, value in state.items()}

    def conv(self, name, x, stride=1, pad=(0, 0)):
        w = self.state[f"{name}.conv.weight"]
        y = np.einsum("chwij,ocij->ohw", windows(x, w.shape[2:], stride, pad, 0), w, optimize=True)
        gamma, beta, mean, var = (
            self.state[f"{name}.bn.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((y - mean) / np.sqrt(var + 1e-3) * gamma + beta, 0)

    def chain(self, name, x, *steps):
        """steps: (suffix, stride, padding)."""
        for suffix, stride, pad in steps:
            x = self.conv(f"{name}.{suffix}", x, stride, pad)
        return x

    def average(self, x):
        return np.nanmean(windows(x, (3, 3), 1, (1, 1), np.nan), (-2, -1))

    def peak(self, x, stride, pad=0):
        return windows(x, (3, 3), stride, (pad, pad), -np.inf).max((-2, -1))

    def a(self, n, x):
        double = [("branch3x3dbl_1", 1, (0, 0)), ("branch3x3dbl_2", 1, (1, 1)), ("branch3x3dbl_3", 1, (1, 1))]
        return [
            self.conv(f"{n}.branch1x1", x), self.chain(n, x, ("branch5x5_1", 1, (0, 0)), ("branch5x5_2", 1, (2, 2))),
            self.chain(n, x, *double), self.conv(f"{n}.branch_pool", self.average(x)),
        ]  # fmt: skip

    def b(self, n, x):
        double = [("branch3x3dbl_1", 1, (0, 0)), ("branch3x3dbl_2", 1, (1, 1)), ("branch3x3dbl_3", 2, (0, 0))]
        return [self.conv(f"{n}.branch3x3", x, 2), self.chain(n, x, *double), self.peak(x, 2)]

    def c(self, n, x):
        pads = {1: (0, 0), 2: (0, 3), 3: (3, 0)}
        double = {1: (0, 0), 2: (3, 0), 3: (0, 3), 4: (3, 0), 5: (0, 3)}
        return [
            self.conv(f"{n}.branch1x1", x), self.chain(n, x, *[(f"branch7x7_{i}", 1, p) for i, p in pads.items()]),
            self.chain(n, x, *[(f"branch7x7dbl_{i}", 1, p) for i, p in double.items()]),
            self.conv(f"{n}.branch_pool", self.average(x)),
        ]  # fmt: skip

    def d(self, n, x):
        seven = [(f"branch7x7x3_{i}", s, p) for i, s, p in ((1, 1, (0, 0)), (2, 1, (0, 3)), (3, 1, (3, 0)), (4, 2, (0, 0)))]
        three = [("branch3x3_1", 1, (0, 0)), ("branch3x3_2", 2, (0, 0))]
        return [self.chain(n, x, *three), self.chain(n, x, *seven), self.peak(x, 2)]

    def e(self, n, x):
        three = self.conv(f"{n}.branch3x3_1", x)
        double = self.chain(n, x, ("branch3x3dbl_1", 1, (0, 0)), ("branch3x3dbl_2", 1, (1, 1)))
        pooled = self.average(x) if n == "Mixed_7b" else self.peak(x, 1, 1)
        return [
            self.conv(f"{n}.branch1x1", x),
            self.conv(f"{n}.branch3x3_2a", three, 1, (0, 1)), self.conv(f"{n}.branch3x3_2b", three, 1, (1, 0)),
            self.conv(f"{n}.branch3x3dbl_3a", double, 1, (0, 1)), self.conv(f"{n}.branch3x3dbl_3b", double, 1, (1, 0)),
            self.conv(f"{n}.branch_pool", pooled),
        ]  # fmt: skip

    def run(self, x):
        x = self.conv("Conv2d_2a_3x3", self.conv("Conv2d_1a_3x3", x, 2))
        x = self.peak(self.conv("Conv2d_2b_3x3", x, 1, (1, 1)), 2)
        x = self.peak(self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x)), 2)
        found = {"stem": x}
        for name, kind in zip(
            "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split(),
            [self.a] * 3 + [self.b] + [self.c] * 4 + [self.d] + [self.e] * 2,
            strict=True,
        ):
            outputs = kind(f"Mixed_{name}", x)
            if name == "6d":
                found["Mixed_6d.branch1x1"] = outputs[0]
            x = found[f"Mixed_{name}"] = np.concatenate(outputs)
        return found


def test_every_block_equals_an_independent_evaluation(state):
    x = np.random.default_rng(1).uniform(-1, 1, (2, SIDE, SIDE + 32, 3)).astype(np.float32)
    found = jax.jit(inception.activations)(inception.fold(state), x)
    for row in range(2):
        expected = Reference(state).run(x[row].astype(np.float64).transpose(2, 0, 1))
        assert set(found) == set(expected)
        for name, values in expected.items():
            ours = np.asarray(found[name][row]).transpose(2, 0, 1)
            assert ours.shape == values.shape and np.abs(values).mean() > 0.1, name
            np.testing.assert_allclose(ours, values, atol=1e-4 * np.abs(values).max(), err_msg=name)


def test_features_of_pictures(state):
    pictures = np.random.default_rng(2).integers(0, 256, (2, 24, 20, 3), np.uint8)
    params = inception.fold(state)
    found = jax.jit(inception.features)(params, pictures)
    x = (np.asarray(inception.resize(pictures.astype(np.float32))) - 128) / 128
    blocks = jax.jit(inception.activations)(params, x)
    pool = np.asarray(blocks["Mixed_7c"]).mean((1, 2))
    logits = pool @ state["fc.weight"].T
    np.testing.assert_allclose(found.pool, pool, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.log(found.probabilities), logits - np.log(np.exp(logits).sum(1, keepdims=True)), atol=1e-3)
    assert found.spatial.shape == (2, 17 * 17 * 7)
    spatial = blocks["Mixed_6d.branch1x1"][..., :7].reshape(2, -1)
    np.testing.assert_allclose(found.spatial, spatial, rtol=1e-4, atol=1e-5 * np.abs(spatial).max())


@pytest.mark.parametrize(("height", "width", "size"), [(5, 3, 8), (9, 16, 6), (7, 7, 7)])
def test_resize_is_that_of_tensorflow_1(height, width, size):
    x = np.random.default_rng(0).uniform(0, 255, (1, height, width, 2)).astype(np.float32)

    def at(i, j):
        y, x0 = i * height / size, j * width / size
        top, left = int(y), int(x0)
        rows, columns = (top, min(top + 1, height - 1)), (left, min(left + 1, width - 1))
        shares = ((1 - y + top, y - top), (1 - x0 + left, x0 - left))
        return sum(
            p * q * x[0, r, c] for r, p in zip(rows, shares[0], strict=True) for c, q in zip(columns, shares[1], strict=True)
        )

    expected = np.array([[at(i, j) for j in range(size)] for i in range(size)])
    np.testing.assert_allclose(inception.resize(x, size)[0], expected, rtol=1e-5)


# Files ---------------------------------------------------------------------------------------------------------------


def saved(folder, state):
    save_arrays(folder, unflatten(state))
    return folder / "model.safetensors"


def test_a_file_is_read_by_its_names(tmp_path, state):
    unused = {"Mixed_7c.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64), "fc.bias": np.zeros(1008, np.float32)}
    aux = {
        f"AuxLogits.conv0.{k}": np.zeros((4, 4, 1, 1)[: 4 if k == "conv.weight" else 1], np.float32) for k in ("conv.weight",)
    }
    params, same = inception.load(saved(tmp_path, state | unused | aux)), inception.fold(state)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert inception.fingerprint(params) == inception.fingerprint(same)
    same["Mixed_5b.branch1x1"]["bias"][0] += 1
    assert inception.fingerprint(params) != inception.fingerprint(same)


def field(number, value):
    """A field of a protocol buffer: an integer, or bytes."""

    def varint(n):
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    return (
        varint(number << 3) + varint(value) if isinstance(value, int) else varint(number << 3 | 2) + varint(len(value)) + value
    )


def constant(name, array, op=b"Const"):
    dims = b"".join(field(2, field(1, n)) for n in array.shape)
    tensor = field(1, 1) + field(2, dims) + field(4, array.astype("<f4").tobytes())
    attributes = [(b"dtype", field(6, 1)), (b"value", field(8, tensor))]
    return field(1, field(1, name) + field(2, op) + b"".join(field(5, field(1, k) + field(2, v)) for k, v in attributes))


def test_the_graph_itself_is_read(tmp_path, state):
    names, graph = inception.graph_names(), [constant(b"softmax/weights", state["fc.weight"].T)]
    parts = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    for ours, scope in names.items():
        graph.append(constant(f"{scope}/conv2d_params".encode(), state[f"{ours}.conv.weight"].transpose(2, 3, 1, 0)))
        graph += [constant(f"{scope}/batchnorm/{k}".encode(), state[f"{ours}.bn.{v}"]) for k, v in parts.items()]
    graph += [field(1, field(1, b"mixed/join") + field(2, b"Concat") + field(3, b"mixed/conv")), field(4, field(1, 9))]
    file = tmp_path / "classify_image_graph_def.pb"
    file.write_bytes(b"".join(graph))
    jax.tree.map(np.testing.assert_array_equal, inception.load(file), inception.fold(state))
    for damaged in (b"".join(graph)[:-1000], b"no graph", graph[-2]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="frozen TensorFlow graph"):
            inception.load(file)


def test_names_in_the_graph():
    """As published conversions pair them."""
    names = inception.graph_names()
    assert len(names) == len(set(names.values())) == 94
    pairs = {
        "Conv2d_3b_1x1": "conv_3", "Mixed_5b.branch5x5_2": "mixed/tower/conv_1", "Mixed_5c.branch_pool": "mixed_1/tower_2/conv",
        "Mixed_6a.branch3x3": "mixed_3/conv", "Mixed_6a.branch3x3dbl_3": "mixed_3/tower/conv_2",
        "Mixed_6d.branch1x1": "mixed_6/conv", "Mixed_6d.branch7x7dbl_5": "mixed_6/tower_1/conv_4",
        "Mixed_7a.branch3x3_2": "mixed_8/tower/conv_1", "Mixed_7a.branch7x7x3_4": "mixed_8/tower_1/conv_3",
        "Mixed_7b.branch3x3_2a": "mixed_9/tower/mixed/conv", "Mixed_7c.branch3x3dbl_2": "mixed_10/tower_1/conv_1",
        "Mixed_7c.branch3x3dbl_3b": "mixed_10/tower_1/mixed/conv_1", "Mixed_7c.branch_pool": "mixed_10/tower_2/conv",
    }  # fmt: skip
    assert {ours: names[ours] for ours in pairs} == pairs


def test_shapes_of_the_full_network():
    full = inception.shapes()
    assert full["fc.weight"] == (1008, 2048) and len(full) == 94 * 5 + 1
    assert full["Mixed_6d.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert full["Mixed_7c.branch3x3_2a.conv.weight"] == (384, 384, 1, 3)
    learned = sum(np.prod(shape) for name, shape in full.items() if "running" not in name)
    assert learned == 21_785_568 + 1008 * 2048  # torchvision's network without its classifiers, and ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_5b.branch1x1.bn.bias": None}, "lacks Mixed_5b.branch1x1.bn.bias: FID needs the weights of the graph of 2015"),
        ({"fc.weight": np.zeros((1000, 128), np.float32)}, "InceptionV3 of 1000 classes; FID is defined by the one of 1008"),
        (
            {"Mixed_7c.branch_pool.bn.weight": np.zeros(3, np.float32)},
            "Mixed_7c.branch_pool.bn.weight is [3], InceptionV3 has [12]",
        ),
    ],
)
def test_another_network_is_refused(tmp_path, state, change, message):
    state = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(UserError) as error:
        inception.load(saved(tmp_path, state))
    assert message in str(error.value)
