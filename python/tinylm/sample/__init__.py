"""Model and prompt to text.

    for piece in sample.stream(model, tokenizer, "def main(", SampleConfig(temperature=0)):
        print(piece, end="", flush=True)

`generate` works on ids and many prompts at once, and `complete` adds log-probabilities; `python -m
tinylm.sample RUN PROMPT` is the command. Importing this package imports no torch: the command
answers `--help` at once.
"""

from typing import TYPE_CHECKING

from tinylm.lazy import on_first_use

if TYPE_CHECKING:
    from tinylm.sample.completions import complete, generate
    from tinylm.sample.decoding import stream

__all__ = ["complete", "generate", "stream"]
__getattr__ = on_first_use(
    __name__,
    {
        "complete": "tinylm.sample.completions",
        "generate": "tinylm.sample.completions",
        "stream": "tinylm.sample.decoding",
    },
)
