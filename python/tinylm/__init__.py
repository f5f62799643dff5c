"""TinyLM: raw text to a trained language model that other tools load.

`tinylm.Tokenizer` is the one name most programs need; every stage of the pipeline is a
module (`tinylm.data`, `tinylm.model`, `tinylm.train`, ...). `python -m tinylm` prints the map.
"""

from tinylm._rust import __version__

# Type checkers know the name; importing it from `typing` would take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from tinylm.tokenizer import Tokenizer

__all__ = ["Tokenizer", "__version__"]


def __getattr__(name: str) -> object:
    """Import the tokenizer on first use: a bare `import tinylm` stays cheap."""
    if name == "Tokenizer":
        from tinylm.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module 'tinylm' has no attribute {name!r}")
