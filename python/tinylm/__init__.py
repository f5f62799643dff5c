"""TinyLM trains a language model from raw text; other tools can load the result.

Most programs need only `tinylm.Tokenizer` from here. Each stage of the pipeline is a module
(`tinylm.data`, `tinylm.model`, `tinylm.train`, ...). `python -m tinylm` prints a map of them.
"""

from tinylm._rust import __version__
from tinylm.lazy import on_first_use

# Type checkers know this name. An import from `typing` would take longer than the rest of the file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

__all__ = ["Tokenizer", "__version__"]
__getattr__ = on_first_use(__name__, {"Tokenizer": "tinylm.tokenizer"})
