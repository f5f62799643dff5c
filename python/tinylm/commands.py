"""What every command shares: arguments in, one line for an error, an exit code out.

Exit codes: 0 done, 1 failed, 2 usage, 75 terminated and saved, 130 interrupted.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tinylm.config import ConfigError

USAGE, INTERRUPTED = 2, 130
# What `Tokenizer.load` advises, and what a command offers that is given a tokenizer's path alone.
TOKENIZER_FILE = {
    "pass one of tokenizer.json, tiktoken, gpt2": (
        "name a .json, a .tiktoken or .tiktoken.gz, or GPT-2's folder of two files"
    ),
    "pass pattern= and special_tokens=": (
        "make a tokenizer.json of them: python -m tinylm.tokenizer import"
    ),
}


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main` with the command line and leave with its exit code.

    Bad input (`ValueError`, `KeyError`, the `OSError` family) ends in one line on standard
    error, not in a traceback; any other exception is a defect of TinyLM and keeps its own.
    """
    warnings.showwarning = _one_line
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except ConfigError as error:
        code = _fail(error, USAGE)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (ValueError, KeyError, OSError) as error:
        code = _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether `-h` or `--help` is among the arguments."""
    return "-h" in arguments or "--help" in arguments


@contextmanager
def advice(words: Mapping[str, str]) -> Iterator[None]:
    """Inside, a `ValueError` advises what the command line offers.

    A library's message names its arguments: each key of `words` in it becomes its value.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        for old, new in words.items():
            text = text.replace(old, new)
        if text == str(error):
            raise
        raise ValueError(text) from error


def _fail(error: Exception, code: int) -> int:
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
