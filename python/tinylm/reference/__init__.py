"""The slow definitions: what every fast part of TinyLM must equal. Imports nothing from tinylm.

As a course: `smallest` is a whole language model in one file of plain Python. `scalars` adds GPT-2
to it. `word_bpe` turns text into ids. `arrays` and `arrays_model` derive every gradient by hand,
and `tensors` leaves them to torch. `optimizers` moves the weights. `tests/test_one_loss.py` and
`tests/test_smallest.py` show that all of them compute the same.
"""
