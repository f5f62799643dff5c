"""The rows of the ladder by chapter; `tests/ladder.py` joins them into one table."""
