"""One worker of ``rmadapter sweep --jobs N``: ``python -m rmadapter.sweeps.worker BEGAN OPTIONS...``.

BEGAN is when the sweep was entered; see ``sweep.work``. ``jobs`` starts it.
"""

from __future__ import annotations

import sys

from rmadapter.commands import guarded
from rmadapter.sweeps.run_sweep import work
from rmadapter.sweeps.settings import parse_sweep

if __name__ == "__main__":
    sys.exit(guarded(lambda words: work(parse_sweep(words[1:])[1], float(words[0])), sys.argv[1:]))
