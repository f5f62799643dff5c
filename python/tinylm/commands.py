"""What every command shares: arguments in, one line for an error, an exit code out.

`EXIT_CODES` says what each means. The steps of a run that is terminated or interrupted are saved;
a second Ctrl-C ends it at once, unsaved.
"""

import argparse
import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO, cast

from tinylm import disk, terminal
from tinylm.config import ConfigError, best

# 75 is EX_TEMPFAIL of sysexits.h: try again. 130 is what a shell reports after Ctrl-C: 128 + 2.
USAGE, TERMINATED, INTERRUPTED = 2, 75, 130
EXIT_CODES = (
    f"0 done, 1 failed, {USAGE} usage, {TERMINATED} terminated and saved, "
    f"{INTERRUPTED} Ctrl-C (training is saved; a second one stops it unsaved)"
)
# By the `remedy` of an error, what a command offers that is given a tokenizer's path alone.
REMEDIES = {
    "format": "name a .json, a .tiktoken or .tiktoken.gz, or GPT-2's folder of two files",
    "pattern": "make a tokenizer.json of them: python -m tinylm.tokenizer import",
}


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main` with the command line and leave with its exit code.

    Bad input (`ValueError`, `KeyError`, the `OSError` family) ends in one line on standard
    error, not in a traceback; any other exception is a defect of TinyLM and keeps its own.
    Standard streams that are closed are replaced first.
    """
    warnings.showwarning = _one_line
    replace_closed_streams()
    try:
        code = main(sys.argv[1:]) or 0
        with disk.naming("standard output"):
            sys.stdout.flush()
    # Before ValueError, of which it is a kind.
    except ConfigError as error:
        code = _fail(error, USAGE)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nobody is there to be told.
        code = 0
    except (ValueError, KeyError, OSError) as error:
        code = _fail(error, 1)
    except KeyboardInterrupt:
        tell("interrupted")
        code = INTERRUPTED
    # What is left in the buffers: Python would try it again at its end, and exit with 120.
    settle(sys.stdout)
    settle(sys.stderr)
    sys.exit(code)


class Closed(io.TextIOBase):
    """Stands for a standard stream that the caller closed: each use is an `OSError` that says so.

    `sys.stdout` is None then, and `print` would lose its words without one.
    """

    def __init__(self, name: str, problem: str = "closed") -> None:
        self._error = (errno.EBADF, problem, name)

    def read(self, size: int | None = -1, /) -> str:
        """Raise `OSError`."""
        raise OSError(*self._error)

    def write(self, text: object, /) -> int:
        """Raise `OSError`."""
        raise OSError(*self._error)

    @property
    def buffer(self) -> "Closed":
        """The stream of bytes, closed as well."""
        return self


def replace_closed_streams() -> None:
    """Put a stand-in where a standard stream is closed, and fill its file descriptor.

    Otherwise the next file to be opened gets the number 0, 1 or 2, and what a library writes to
    standard error goes into it.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    if sys.stdin is None:
        sys.stdin = cast(TextIO, Closed("standard input", "closed: give the text as an argument"))
    if sys.stdout is None:
        sys.stdout = cast(TextIO, Closed("standard output"))
    if sys.stderr is None:
        # No error can be shown, and the exit code still tells.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def tell(text: str) -> None:
    """Print a line on standard error, or nothing if that cannot be written to."""
    terminal.draw(f"{text}\n")


def settle(stream: TextIO) -> None:
    """Flush a stream; if that fails, what it holds and all that follows goes to /dev/null."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _NoPath(argparse.ArgumentTypeError, ValueError):
    """A `ValueError` of whose text argparse makes its message."""


def path(word: str) -> str:
    """Return a path of the command line with a leading `~` replaced by the home folder.

    A shell replaces `~` only at the beginning of a word without quotes, so not in `--out=~/x`.
    `RUN/best` becomes the checkpoint that it stands for (`config.best`). `ValueError` for no word.
    """
    if not word:
        # As a path it would mean the current folder.
        raise _NoPath("'' is no path: name one; the current folder is .")
    word = os.path.expanduser(word)
    found = best(word)
    # Only then as a path, which would lose a slash at the end.
    return word if found == Path(word) else str(found)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether `-h` or `--help` is among the arguments."""
    return "-h" in arguments or "--help" in arguments


def sorted_words(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments to the words among them and the values of those that are key=value.

    `ConfigError` for a key that is given twice: one of the two would be lost in silence.
    """
    words, given = [], dict[str, str]()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            words.append(argument)
        elif key in given:
            raise ConfigError(f"{key}: given twice, as {given[key]} and as {value}: leave one out")
        else:
            given[key] = value
    return words, given


@contextmanager
def finding(folder: Path, command: str) -> Iterator[None]:
    """Inside, a model is looked for in `folder`; where there is none, an error says what is there.

    That is a file, a folder of runs (named is the newest, for `python -m tinylm.<command>`), or a
    run that has no checkpoint yet.
    """
    try:
        if folder.is_file():
            advice = "is a file: name the folder of a run, a checkpoint or a model"
            raise NotADirectoryError(errno.ENOTDIR, advice, str(folder))
        if not folder.exists():
            problem = "no such run, checkpoint or model folder"
            raise FileNotFoundError(errno.ENOENT, problem, str(folder))
        yield
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        text = what_it_holds(folder, command)
        if text is None:
            raise
        raise FileNotFoundError(errno.ENOENT, text, str(folder)) from error


def what_it_holds(folder: Path, command: str) -> str | None:
    """Why a folder has no model to load, if it is none itself; None where it may be one."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    if (folder / "config.yaml").exists() or (folder / "checkpoints").is_dir():
        saved = any((folder / "checkpoints").glob("*step-*"))
        return None if saved else "this run has no checkpoint yet: its training saves the first"
    runs = [path for path in folder.iterdir() if (path / "checkpoints").is_dir()]
    if not runs:
        return "no run, checkpoint or model: it has neither a config.json nor checkpoints"
    newest = max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime)
    return (
        f"holds {len(runs)} run{'s' * (len(runs) > 1)} and is none itself: "
        f"the newest is python -m tinylm.{command} {newest}"
    )


@contextmanager
def remedies(**offered: str) -> Iterator[None]:
    """Inside, an error whose `remedy` is named here ends with the advice given for it.

    A library's own advice names its arguments, which a command line does not have. Such an error
    says by `remedy` what would help and by `problem` what is wrong, without any advice.
    """
    try:
        yield
    except ValueError as error:
        text = _advised(error, offered)
        if text is None:
            raise
        raise ValueError(text) from error


def _advised(error: Exception, offered: Mapping[str, str]) -> str | None:
    """The problem of an error and the advice offered for its remedy, if there is one."""
    advice = offered.get(getattr(error, "remedy", ""))
    return None if advice is None else f"{getattr(error, 'problem', error)}; {advice}"


def _fail(error: Exception, code: int) -> int:
    # str() of a KeyError is the repr of its message.
    plain = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = _advised(error, REMEDIES) or plain
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    tell(f"error: {' '.join(text.split())}")
    return code


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    tell(f"warning: {message}")
