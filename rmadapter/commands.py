"""What every command of the package has in common: errors become sentences and exit statuses."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rmadapter.errors import InputError, StoppedError


def guarded(function: Callable[[list[str]], Any], options: list[str], hint: str = "") -> int:
    """The exit status of ``function(options)``, whose errors and warnings are told to a user.

    0 or what the function returns; 2 for input that has to be mended, 1 for a run that could not go on, 130 after
    Ctrl-C (``hint`` then says how to go on), 141 where nobody reads the output any more.
    """
    with warnings.catch_warnings():
        # A sentence for the user, without the line of code it comes from.
        warnings.showwarning = lambda message, *_: print(f"rmadapter: warning: {message}", file=sys.stderr)
        try:
            status = function(options) or 0
            sys.stdout.flush()
            return status
        except InputError as error:
            print(f"rmadapter: {error}", file=sys.stderr)
            return 2
        except StoppedError as error:
            print(f"rmadapter: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"rmadapter: stopped{hint}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader, such as head, has what it wants. Nothing may be left for Python to flush at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except RuntimeError as error:
            from torch import OutOfMemoryError

            if not isinstance(error, OutOfMemoryError):
                raise
            print(
                f"rmadapter: the GPU's memory is full: {error}; valid: a smaller --batch-size, for the test of a "
                "training run --eval-batch-size, or a 16-bit --precision",
                file=sys.stderr,
            )
            return 2
