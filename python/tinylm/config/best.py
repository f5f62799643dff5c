"""`RUN/best`, a name for the checkpoint of a run whose validation loss was the lowest."""

import json
from pathlib import Path

NAME, FILE = "best", "best.json"


def best(path: str | Path) -> Path:
    """The checkpoint that `RUN/best` stands for; any other path, and one that exists, as it is.

    `ValueError` names the best.json that does not say which checkpoint it is.
    """
    path = Path(path)
    record = path.parent / FILE
    if path.name != NAME or path.exists() or not record.is_file():
        return path
    try:
        found = Path(json.loads(record.read_bytes())["checkpoint"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{record}: names no checkpoint: take one of {path.parent}") from None
    return path.parent / found
