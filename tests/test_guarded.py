"""What every command has in common: errors as sentences, exit statuses, and output that obeys no name."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmadapter import commands
from rmadapter.commands import guarded
from rmadapter.errors import InputError, StoppedError, printable, printable_line
from rmadapter.files import write_text

RED, RIGHT_TO_LEFT = "\x1b[31mred", "cat\u202egnp"


def told(capsys, function, hint="") -> tuple[int, str]:
    status = guarded(lambda words: function(), [], hint)
    return status, capsys.readouterr().err


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("shots is 0"), 2, "shots is 0"),
        (StoppedError("the loss is not finite"), 1, "the loss is not finite"),
        (KeyboardInterrupt(), 130, "stopped; go on so"),
        (commands.Terminated(), 143, "ended by SIGTERM; go on so"),
        (MemoryError(), 2, "the memory of this machine is full; go on so"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "/a/b: Permission denied; valid: a path that"),
        (OSError(errno.EROFS, "Read-only file system", b"/a/b"), 2, "/a/b: Read-only file system; valid: a folder"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device; valid: more room there"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 2, "a and b: Invalid link"),
        (OSError(errno.EIO, "Input/output error", 7), 2, "Input/output error"),
        (ConnectionError("no route"), 2, "no route"),
        (TimeoutError(), 2, "TimeoutError"),
    ],
)
def test_errors_are_sentences(error, status, sentence, capsys):
    found, text = told(capsys, raising(error), "; go on so")
    assert found == status
    assert text.startswith(f"rmadapter: {sentence}")
    assert text.count("\n") == 1


def test_a_fault_of_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda words: 1 / 0, [])


def too_many_open(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        (tmp_path / "file").open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def in_a_circle(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "loop").open()


# What is asked of a real file system -> the path that is named, what is said of it.
PROVOKED = {
    "missing": (lambda path: (path / "no").open(), "no", "No such file or directory"),
    "folder": (lambda path: path.open(), "", "Is a directory"),
    "in a file": (lambda path: (path / "file" / "x").open(), "file/x", "Not a directory"),
    "long": (lambda path: (path / ("n" * 300)).mkdir(), "n" * 300, "File name too long; valid: a shorter name"),
    "not empty": (lambda path: path.rmdir(), "", "Directory not empty"),
    "circle": (in_a_circle, "loop", "Too many levels of symbolic links"),
    "open": (too_many_open, "file", "Too many open files; valid: fewer --workers, or a higher limit"),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_what_the_operating_system_refuses_names_the_path(name, tmp_path, capsys):
    function, path, said = PROVOKED[name]
    (tmp_path / "file").touch()
    status, text = told(capsys, lambda: function(tmp_path))
    assert (status, text.split("; valid")[0]) == (2, f"rmadapter: {tmp_path / path}: {said}\n".split("; valid")[0])
    assert said in text


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG])
def test_what_cannot_be_written_names_the_path_and_the_remedy(code, tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refused)
    status, text = told(capsys, lambda: write_text(tmp_path / "results.json", "x"))
    assert status == 2
    assert text.startswith(f"rmadapter: {tmp_path / 'results.json'} cannot be written: {os.strerror(code)}; valid: ")
    assert not list(tmp_path.iterdir())


def run(*words, code=None, **options):
    """The command in a process of its own, without torch: its status, standard output and standard error."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "rmadapter"]), *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {**os.environ, "PYTHONPATH": str(Path(commands.__file__).parents[1]), **options.pop("env", {})}
    done = subprocess.run(command, env=environment, check=False, timeout=120, **options)
    return done.returncode, done.stdout, done.stderr


PRINTING = f"""
import sys
from rmadapter.commands import guarded
from rmadapter.errors import InputError
def function(words):
    print("猫 😀", {RED!r}, {RIGHT_TO_LEFT!r}, "\\udcff")
    if words:
        raise InputError("class 猫 is \\udcff")
sys.exit(guarded(function, sys.argv[1:]))
"""


def test_help_needs_nothing_of_the_machine():
    """Neither torch, nor what reads the environment when it is imported; a torch of our own stands in for it here."""
    code = "import sys; sys.modules['torch'] = sys.modules['jsonargparse'] = None; from rmadapter.cli import main; main"
    for words in ("['--help']", "['-h']"):
        status, out, err = run(code=f"{code}({words})", env={"RMADAPTER_CPU": "none such", "COLUMNS": "wide"})
        assert (status, err) == (0, b"")
        assert out.startswith(b"usage: rmadapter COMMAND")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_shown_in_any_encoding(encoding):
    status, out, err = run("x", code=PRINTING, env={"PYTHONIOENCODING": encoding})
    assert status == 2
    cat, emoji = ("猫", "😀") if encoding == "utf-8" else ("\\u732b", "\\U0001f600")
    assert out.decode() == f"{cat} {emoji} \\x1b[31mred cat\\u202egnp \\udcff\n"
    assert err.decode() == f"rmadapter: class {cat} is \\udcff\n"


def test_closed_output_is_no_error_and_no_file_gets_its_number(tmp_path):
    opens = f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
    script = tmp_path / "script.py"
    script.write_text(PRINTING.replace("def function(words):\n", f"def function(words):\n{opens}"), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(commands.__file__).parents[1])}
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        shell = ["sh", "-c", f'"{sys.executable}" "{script}" x {closed}']
        assert subprocess.run(shell, env=environment, check=False, capture_output=True).returncode == 2
        assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_below_the_output():
    with open("/dev/full", "w") as full:
        for environment in ({"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}):
            status, _, err = run("--help", stdout=full, env=environment)
            assert (status, err[:46], err.count(b"\n")) == (2, b"rmadapter: standard output cannot be written: ", 1)
            assert run("no-such", stderr=full, env=environment) == (2, b"", None)


def test_a_reader_that_has_gone():
    """As in ``rmadapter train --help | head -1``: also where the command ends by SystemExit."""
    code = """
import sys
from rmadapter.commands import guarded
def function(words):
    print("x" * 10)
    if words:
        raise SystemExit(0)
sys.exit(guarded(function, sys.argv[1:]))
"""
    for words in ([], ["help"]):
        for environment in ({"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}):
            reader, writer = os.pipe()
            os.close(reader)
            with os.fdopen(writer, "wb") as gone:
                assert run(*words, code=code, stdout=gone, env=environment) == (141, None, b"")


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    cleaned = []

    def function():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(signal.getsignal(signal.SIGTERM))

    assert told(capsys, function, "; --resume goes on") == (143, "rmadapter: ended by SIGTERM; --resume goes on\n")
    assert cleaned == [signal.SIG_DFL]  # a second signal ends it at once
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "ended")]
)
def test_the_end_of_processes_that_got_the_signal_too_hides_nothing(number, status, said, capsys):
    """As a terminal and a scheduler send it; PyTorch's handler raises an error of a process that decodes images."""

    def lost(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    def function():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGCHLD)

    before = signal.signal(signal.SIGCHLD, lost)
    try:
        found, error = told(capsys, function)
        assert signal.getsignal(signal.SIGCHLD) is lost
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (found, error.partition(" by ")[0].strip()) == (status, f"rmadapter: {said}")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("forks", [False, True])
def test_a_signal_that_comes_where_python_forgets_errors_is_not_lost(forks, capsys):
    """In a destructor, as that of PyTorch's loader, which waits there for its processes; and while one is forked."""
    armed = []

    class Loader:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def hook():
        if armed:
            armed.clear()
            signal.raise_signal(signal.SIGINT)

    if forks:
        os.register_at_fork(after_in_parent=hook)  # for good: it does nothing where it is not armed

    def function(seconds):
        if forks:
            armed.append(True)
            process = multiprocessing.get_context("fork").Process(target=int)
            process.start()
            process.join()
        else:
            Loader()
        time.sleep(seconds)

    assert told(capsys, lambda: function(10)) == (130, "rmadapter: stopped\n")
    if not forks:  # which may take longer than the signal waits
        assert told(capsys, lambda: function(0)) == (0, "")  # the command was at its end
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    time.sleep(2 * commands.DEFERRED_SECONDS)


class Destroyed:
    """Gets signals where Python forgets what they raise, and looks at what handles them then."""

    def __init__(self, handlers, *numbers):
        self.handlers, self.numbers = handlers, numbers

    def __del__(self):
        for number in self.numbers:
            signal.raise_signal(number)
        self.handlers += [signal.getsignal(signal.SIGTERM)]


def test_a_second_sigterm_ends_a_destructor_that_hangs(capsys):
    handlers = []

    def function():
        Destroyed(handlers, signal.SIGTERM)
        time.sleep(10)

    assert told(capsys, function) == (143, "rmadapter: ended by SIGTERM\n")
    assert handlers == [signal.SIG_DFL]


def test_processes_that_end_while_a_signal_waits_say_nothing(capsys):
    def lost(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    def function():
        Destroyed(reached, signal.SIGINT, signal.SIGCHLD)
        time.sleep(10)

    reached = []
    before = signal.signal(signal.SIGCHLD, lost)
    try:
        assert told(capsys, function) == (130, "rmadapter: stopped\n")
        assert reached
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_signal_that_waited_does_not_come_amid_the_end_by_another(capsys):
    def function():
        Destroyed([], signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(2 * commands.DEFERRED_SECONDS)

    assert told(capsys, function) == (143, "rmadapter: ended by SIGTERM\n")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_timer_of_somebody_else_stays_theirs(capsys):
    def function():
        Destroyed([], signal.SIGINT)
        time.sleep(0.2)

    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        told(capsys, function)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung == [True]


def test_sigterm_stays_with_torchrun_and_with_others(monkeypatch):
    def handler():
        return guarded(lambda words: found.append(signal.getsignal(signal.SIGTERM)), [])

    found = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    handler()
    monkeypatch.delenv("LOCAL_RANK")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        handler()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_DFL, signal.SIG_IGN]


def test_the_streams_are_as_before_afterwards(capsys):
    streams = sys.stdout, sys.stderr, sys.stdout.errors
    guarded(lambda words: print(RED), [])
    assert streams == (sys.stdout, sys.stderr, sys.stdout.errors)
    assert capsys.readouterr().out == "\\x1b[31mred\n"


def test_the_status_is_a_number_that_the_function_returns():
    assert [guarded(lambda words, value=value: value, []) for value in (None, 0, 1, Path("x"), {})] == [0, 0, 1, 0, 0]


def test_printable():
    assert printable("a\tb\nGrün 猫 👩‍👩‍👧 é") == "a\tb\nGrün 猫 👩‍👩‍👧 é"
    assert printable("\x00\r\x7f\x9b\u200f\u2066\u2029\udc80") == r"\x00\r\x7f\x9b\u200f\u2066\u2029\udc80"
    assert printable_line(" a \r\n\tb\x1b ") == "a b\\x1b"
