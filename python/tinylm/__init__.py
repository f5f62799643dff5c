"""TinyLM: raw text to a trained language model that other tools load.

`tinylm.Tokenizer` is the one name most programs need; every stage of the pipeline is a
module (`tinylm.data`, `tinylm.model`, `tinylm.train`, ...). `python -m tinylm` prints the map.
"""

from tinylm._rust import __version__
from tinylm.lazy import on_first_use

# Type checkers know the name; importing it from `typing` would take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

__all__ = ["Tokenizer", "__version__"]
__getattr__ = on_first_use(__name__, {"Tokenizer": "tinylm.tokenizer"})
