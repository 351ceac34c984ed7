"""`python -m comarl`, where the command `comarl` is not on the path."""

import sys

from comarl.cli import main

if __name__ == "__main__":
    sys.exit(main())
