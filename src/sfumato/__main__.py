"""`python -m sfumato`: the command line without the installed script."""

import sys

from sfumato.cli import main

if __name__ == "__main__":
    sys.exit(main())
