"""What tests of tools/ share."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script(repository):
    """`script("compare_plans")`: tools/bench/compare_plans.py as a module; it finds those beside it, as when it is started."""
    folder = repository / "tools" / "bench"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == folder:
            del sys.modules[name]
