"""What tools/bench/compare_plans.py compares is alike: parameters, pictures, the targets on its page."""

import importlib.util
import sys

import pytest


@pytest.fixture(scope="module")
def bench(repository):
    sys.path.insert(0, str(repository / "tools/bench"))  # where common.py is
    spec = importlib.util.spec_from_file_location("compare_plans", repository / "tools/bench/compare_plans.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_plans"] = module  # for its dataclasses
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(repository / "tools/bench"))


@pytest.mark.parametrize("folder", ["shapes", "fashion_mnist"])
def test_all_orders_have_the_same_size(bench, folder, tmp_path):
    """Counted before anything is trained: about 2M parameters, and the finest grid of the two tokenizers is the same."""
    subject = bench.SUBJECTS[folder]
    models = {order: bench.model(subject, order) for order in bench.ORDERS}
    sizes = {order: bench.parameters(c) for order, c in models.items()}
    assert all(1.9e6 < size < 2.5e6 for size in sizes.values()) and max(sizes.values()) < 1.1 * min(sizes.values())
    assert {(c.layers, c.layout.height, c.layout.codebook_size) for c in models.values()} == {
        (4, models["masked"].layout.height, models["masked"].layout.codebook_size)
    }
    experiments = [bench.generator(subject, order, tmp_path) for order in bench.ORDERS]
    assert len({(e.batch, e.optimizer, e.data.size) for e in experiments}) == 1
    assert len({e.task.tokenizer for e in experiments}) == 2 and experiments[2].data != experiments[0].data


def test_stages_are_not_done_again(bench, tmp_path):
    made = []
    for _ in range(2):
        stages = bench.Stages(tmp_path / "runs/stages.json")
        assert stages.once("a", lambda: made.append(1) or {"b": 2.5}) == {"b": 2.5}
    assert made == [1]


def test_time_is_that_of_the_steps(bench, tmp_path, monkeypatch):
    """4 pictures a step of 10 tokens each, at rates that are known from step 20 on."""
    rates = [{"step": 1}, {"step": 20, "tokens_per_second": 400.0}, {"step": 50, "tokens_per_second": 100.0}]
    monkeypatch.setattr(bench, "read_metrics", lambda folder: rates)
    monkeypatch.setattr(bench.tasks, "make", lambda *args: type("Task", (), {"unit": ("tokens", 10)}))
    experiment = bench.generator(bench.SUBJECTS["shapes"], "masked", tmp_path)
    per_step = 10 * experiment.batch
    assert bench.seconds_of(tmp_path, experiment) == 20 * per_step / 400 + 30 * per_step / 100


def test_targets_are_next_tokens(bench):
    found = {"next token": {"right": 0.8, "forwards": 64}, "next scale": {"right": 0.76, "forwards": 17}}
    rows = bench.verdicts(bench.SUBJECTS["fashion_mnist"], found)
    assert [(row.name, row.reached) for row in rows] == [
        ("Fashion-MNIST, next scale: right", True), ("Fashion-MNIST, next scale: forwards", False),
    ]  # fmt: skip
