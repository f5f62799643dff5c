"""Text to token ids and back: `Tokenizer`, trained on your text or loaded from the files of others.

The work is done in Rust (`rust/tokenizer`), by the rules that `tinylm.reference.patterns` and
`tinylm.reference.byte_bpe` spell out. `python -m tinylm.tokenizer` is the command.
"""

from tinylm.tokenizer.alphabets import Characters
from tinylm.tokenizer.stream import Stream
from tinylm.tokenizer.tokenizer import Tokenizer

__all__ = ["Characters", "Stream", "Tokenizer"]
