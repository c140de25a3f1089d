"""`python -m liger_mini COMMAND`; see `liger_mini.commands`."""

import sys

from liger_mini.commands import main

if __name__ == "__main__":
    sys.exit(main())
