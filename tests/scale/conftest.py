"""Minutes each, and several processes: `MMGEN_SCALE=1 pytest tests/scale` runs them."""

import os

collect_ignore_glob = [] if os.environ.get("MMGEN_SCALE") else ["test_*.py"]
