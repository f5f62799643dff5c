"""Model and prompt to text.

    for piece in sample.stream(model, tokenizer, "def main(", SampleConfig(temperature=0)):
        print(piece, end="", flush=True)

`generate` works on ids and many prompts at once; `python -m tinylm.sample RUN PROMPT` is the
command. Importing this package imports no torch: the command answers `--help` at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.sample.__main__ import main
    from tinylm.sample.decoding import generate, stream

__all__ = ["generate", "main", "stream"]

_HOMES = {"generate": "decoding", "stream": "decoding", "main": "__main__"}


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use."""
    if name in _HOMES:
        return getattr(import_module(f"tinylm.sample.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tinylm.sample' has no attribute {name!r}")
