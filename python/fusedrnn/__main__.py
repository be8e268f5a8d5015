"""``python -m fusedrnn``: the command."""

import sys

from fusedrnn.cli import main

sys.exit(main())
