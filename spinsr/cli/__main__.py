"""`python -m spinsr.cli` is the command `spinsr`."""

import sys

from spinsr.cli import main

sys.exit(main())
