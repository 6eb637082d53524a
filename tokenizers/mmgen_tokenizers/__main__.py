"""python -m mmgen_tokenizers ... is the command mmgen-tokenizers."""

import sys

from .cli import main

sys.exit(main())
