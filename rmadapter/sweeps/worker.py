"""One worker of ``rmadapter sweep --jobs N``: ``python -m rmadapter.sweeps.worker BEGAN OPTIONS...``.

BEGAN is when the sweep was entered; see ``sweep.work``. ``jobs`` starts it.
"""

from __future__ import annotations

import sys

from rmadapter.commands import guarded
from rmadapter.sweeps.faults import FAULT_STATUS, DeviceFaultError
from rmadapter.sweeps.run_sweep import work
from rmadapter.sweeps.settings import parse_sweep


def work_once(words: list[str]) -> int:
    """One worker's part of a sweep, from the words of its command; its exit status."""
    try:
        work(parse_sweep(words[1:])[1], float(words[0]))
    except DeviceFaultError as error:
        print(f"rmadapter: {error}", file=sys.stderr)
        return FAULT_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(guarded(work_once, sys.argv[1:]))
