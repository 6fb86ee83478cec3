"""`python -m maskmend` is the same as `maskmend`."""

import sys

from maskmend.cli import main

if __name__ == "__main__":
    sys.exit(main())
