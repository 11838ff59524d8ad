"""The training script: ``python -m rmadapter.train --data FOLDER --fused`` is ``rmadapter train``."""

import sys

from rmadapter.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
