"""`python -m spinsr`: the command line."""

import sys

from spinsr.cli import main

if __name__ == '__main__':
    sys.exit(main())
