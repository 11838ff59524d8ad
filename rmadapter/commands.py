"""What every command of the package has in common: errors become sentences and exit statuses."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Container, Iterator
from types import FrameType
from typing import Any, TextIO

from rmadapter.errors import InputError, StoppedError, printable, reason

# A signal that comes where its error would be forgotten is looked at again after so long.
DEFERRED_SECONDS = 0.05
# The function of multiprocessing that forks; Python's own hooks, which run then, have it above them.
FORK = "_launch"


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, or the machine, ends the command. It ends as after Ctrl-C."""


def guarded(function: Callable[[list[str]], Any], options: list[str], hint: str = "") -> int:
    """The exit status of ``function(options)``, whose errors and warnings are told to a user.

    0, or the number that the function returns; 2 for what has to be mended: an InputError, or what the operating
    system refuses; 1 for a run that could not go on; 130 after Ctrl-C and 143 after SIGTERM (``hint`` then says how to
    go on); 141 where nobody reads the output any more. What it prints may hold any name: see ``printable``.

    Raises:
        SystemExit: what ``function`` ends with, such as after --help.
    """
    _open_closed_streams()
    output = _Output(sys.stdout)
    with _shown_in_any_encoding(sys.stdout, sys.stderr), _warnings_told(), _stops_raised():
        try:
            with contextlib.redirect_stdout(output):  # type: ignore[type-var]  # all that print and others ask of it
                try:
                    status = function(options)
                    return status if isinstance(status, int) else 0
                finally:
                    output.flush()
        except (Exception, KeyboardInterrupt) as error:
            if output.failure is None:
                told = _told(error, hint)
            else:
                _silence(sys.stdout)
                told = _told_of_output(output.failure)
            if told is None:
                raise
            sentence, status = told
            if sentence:
                _tell(sentence)
            return status


def _told(error: BaseException, hint: str) -> tuple[str, int] | None:
    """What is said of ``error``, and the exit status; None of a fault of the code, which a traceback tells best."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, StoppedError):
        return str(error), 1
    if isinstance(error, Terminated):
        return f"ended by SIGTERM{hint}", 143
    if isinstance(error, KeyboardInterrupt):
        return f"stopped{hint}", 130
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return ": ".join([" and ".join(names), reason(error)] if names else [reason(error)]), 2
    if isinstance(error, MemoryError):
        return f"the memory of this machine is full{hint}", 2
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
        return (
            f"the GPU's memory is full: {error}; valid: a smaller --batch-size, for the test of a training run "
            "--eval-batch-size, or a 16-bit --precision",
            2,
        )
    return None


def _told_of_output(error: OSError) -> tuple[str, int]:
    """As ``_told``, where standard output cannot be written; nothing is said where its reader has gone."""
    if isinstance(error, BrokenPipeError):
        return "", 141  # such as head, which has what it wants
    return f"standard output cannot be written: {reason(error)}", 2


def _tell(sentence: str) -> None:
    """A sentence on standard error, where that is there."""
    try:
        print(f"rmadapter: {printable(sentence)}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


class _Output:
    """Standard output that shows names without obeying them, and knows whether it failed."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._failing():
            self._stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


def _silence(stream: TextIO) -> None:
    """Nothing may be left in ``stream`` for Python to write at its end, which would fail again."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file under it, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """Where a shell has closed a standard stream (``>&-``), the null device: the next file would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8"))


@contextlib.contextmanager
def _shown_in_any_encoding(*streams: TextIO) -> Iterator[None]:
    """Inside, what an encoding such as ASCII has no form for is written as an escape."""
    before = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    for stream, _ in before:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            with contextlib.suppress(OSError, ValueError):  # full, or closed by what ran
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """Inside, a warning is a sentence for the user, without the line of code that it comes from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _tell(f"warning: {message}")
        yield


@contextlib.contextmanager
def _stops_raised() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated in the main thread, Ctrl-C KeyboardInterrupt; a second SIGTERM ends at once.

    A terminal and a scheduler send them to the processes that decode images too, whose end is no error from then on:
    PyTorch's handler would raise one amid what follows, which would hide why the command ends. What is raised where
    Python would print and forget it is raised a bit later, by a timer, unless that is somebody else's. Afterwards all
    handlers are as before.

    A signal that somebody else handles stays theirs. So do those of torchrun's processes: it ends all of them where
    one has failed, and the others wait for that one where Python sees no signal.
    """
    process = os.getpid()
    before: dict[int, Any] = {}

    def handle(number: int, handler: Any) -> None:
        before.setdefault(number, signal.signal(number, handler))

    def stop(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "SIGCHLD") and callable(signal.getsignal(signal.SIGCHLD)):
            handle(signal.SIGCHLD, lambda *_: None)  # of SIG_DFL Python would say that it came too late
        if number == signal.SIGTERM:
            handle(number, signal.SIG_DFL)
        if os.getpid() == process and _is_forgotten(frame) and _has_timer(before):
            handle(signal.SIGALRM, lambda _, later: stop(number, later))
            signal.setitimer(signal.ITIMER_REAL, DEFERRED_SECONDS)
            return
        end_timer()  # of another signal, whose error would come amid the end of the command
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def end_timer() -> None:
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)

    ours = threading.current_thread() is threading.main_thread() and "LOCAL_RANK" not in os.environ
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler} if ours else {}
    for number in [number for number, handler in usual.items() if signal.getsignal(number) == handler]:
        handle(number, stop)
    try:
        yield
    finally:
        end_timer()
        for each, handler in before.items():
            signal.signal(each, handler)


def _has_timer(ours: Container[int]) -> bool:
    """Whether there is a timer that nobody else uses; its signal may be among ``ours``."""
    return hasattr(signal, "setitimer") and (
        signal.SIGALRM in ours or signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    )


def _is_forgotten(frame: FrameType | None) -> bool:
    """Whether Python forgets what is raised in ``frame``: in a loader's destructor, which ends its processes, or where
    one is forked.
    """
    while frame is not None and frame.f_code.co_name not in ("__del__", FORK):
        frame = frame.f_back
    return frame is not None
