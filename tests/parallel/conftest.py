import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent / "training")]  # for miniatures.py, which subprocesses run too, and models.py
