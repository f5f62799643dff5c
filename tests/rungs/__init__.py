"""The rows of the ladder by subject; `tests/ladder.py` joins them into one table."""
