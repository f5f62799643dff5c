"""The slow definitions: what every fast part of TinyLM must equal. Imports nothing from tinylm.

As a course: `word_bpe` turns text into ids. `autograd` explains gradients and `scalars` a whole
transformer, number by number; `arrays` and `arrays_model` derive the same gradients by hand;
`tensors` leaves them to torch. `optimizers` moves the weights. `tests/test_one_loss.py` shows that
all of them compute one and the same thing.
"""
