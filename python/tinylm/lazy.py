"""Names that a package imports on their first use, so that importing the package stays cheap.

    __getattr__ = on_first_use(__name__, {"Tokenizer": "tinylm.tokenizer"})

The package also imports the names under `if TYPE_CHECKING`, for type checkers and readers.
"""

# Importing `typing` would take longer than all the rest of a bare `import tinylm`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def on_first_use(package: str, homes: "Mapping[str, str]") -> "Callable[[str], object]":
    """A `__getattr__` for `package`: each key of `homes` is a name in the module that it maps to.

    Any other name is an `AttributeError`, as without it.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # With a `fromlist`, `__import__` returns the module itself and not `tinylm`.
        return getattr(__import__(homes[name], fromlist=[name]), name)

    return __getattr__
