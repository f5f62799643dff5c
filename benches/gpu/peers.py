"""The other implementations that cases compare with, each where it is there."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from benches.gpu.case import Missing, Place


@functools.cache
def _liger(module: str) -> Any:
    """A module of liger_kernel.ops; the reason, where it is not there."""
    try:
        return importlib.import_module(f"liger_kernel.ops.{module}")
    except ImportError as error:
        return Missing(f"not there: {error}")


def liger(
    place: Place, module: str, make: Callable[[Any], Callable[[], Any]]
) -> Callable[[], Any] | Missing:
    """The contender that `make` makes of a module of liger_kernel.ops, where Liger is there."""
    if place.dry:
        return Missing("Liger needs a GPU")
    found = _liger(module)
    return found if isinstance(found, Missing) else make(found)
