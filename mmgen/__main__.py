"""python -m mmgen ... is the command mmgen."""

import sys

from mmgen.cli.main import main

sys.exit(main())
