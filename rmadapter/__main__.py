"""``python -m rmadapter`` is the command ``rmadapter``."""

import sys

from rmadapter.cli import main

if __name__ == "__main__":
    sys.exit(main())
