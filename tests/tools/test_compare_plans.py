"""What tools/bench/compare_plans.py compares is alike: parameters, pictures, the targets on its page."""

import pytest


@pytest.fixture(scope="module")
def bench(script):
    return script("compare_plans")


@pytest.mark.parametrize("folder", ["shapes", "fashion_mnist"])
def test_all_orders_have_the_same_size(bench, folder, tmp_path):
    """Counted before anything is trained: about 2M parameters, and the finest grid of the two tokenizers is the same."""
    subject = bench.SUBJECTS[folder]
    models = {order: bench.model(subject, order) for order in bench.ORDERS}
    sizes = {order: bench.parameters(c) for order, c in models.items()}
    assert all(1.8e6 < size < 2.5e6 for size in sizes.values()) and max(sizes.values()) < 1.2 * min(sizes.values())
    assert {(c.layers, c.layout.height, c.layout.codebook_size) for c in models.values()} == {
        (4, models["masked"].layout.height, models["masked"].layout.codebook_size)
    }
    experiments = [bench.generator(subject, order, tmp_path) for order in bench.ORDERS]
    assert len({(e.batch, e.optimizer, e.data.size) for e in experiments}) == 1
    assert len({e.task.tokenizer for e in experiments}) == 2 and experiments[2].data != experiments[0].data


def test_targets_are_next_tokens(bench):
    found = {"next token": {"right": 0.8, "forwards": 64}, "next scale": {"right": 0.76, "forwards": 17}}
    rows = bench.verdicts(bench.SUBJECTS["fashion_mnist"], found)
    assert [(row.name, row.reached) for row in rows] == [
        ("Fashion-MNIST, next scale: right", True), ("Fashion-MNIST, next scale: forwards", False),
    ]  # fmt: skip
