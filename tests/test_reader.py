"""Reading: the logits of growing texts, of unequal length, against reading each anew."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build
from tinylm.config import ModelConfig
from tinylm.model import inference
from tinylm.sample.reader import Reader, visible

SMALL = ModelConfig(vocab_size=17, d_model=12, n_layers=2, n_heads=2, context_length=8)


def anew(model, text):
    """The logits after a text, its visible end read alone."""
    window = text[-visible(len(text), model.context_length) :]
    return model(torch.tensor([window]))[0, -1].double()


TEXTS = st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    texts=TEXTS,
    seed=st.integers(0, 2**31),
    position=st.sampled_from(["rope", "learned"]),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    at_once=st.sampled_from([1, 5, 2**14]),
)
def test_texts_of_unequal_length_are_read_as_if_each_were_alone(
    texts, seed, position, sizes, at_once
):
    config = ModelConfig(**{**vars(SMALL), "position": position})
    model = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch, inference(model):
        patch.setattr("tinylm.sample.reader.AT_ONCE", at_once)
        reader = Reader(model, texts, sum(sizes), vocab_size=17)
        for row, text in enumerate(texts):
            assert_close(reader.last[row], anew(model, text), **CLOSE)
        for size in sizes:
            new = torch.randint(17, (len(texts), size), generator=generator).tolist()
            logits = reader.read(new)
            assert logits.shape == (len(texts), size, 17)
            for row, ids in enumerate(new):
                for t in range(size):
                    wanted = anew(model, texts[row] + ids[: t + 1])
                    assert_close(logits[row, t], wanted, **CLOSE)
            texts = [text + ids for text, ids in zip(texts, new, strict=True)]


def test_a_draft_is_taken_back_row_by_row():
    model = build(SMALL)
    with inference(model):
        reader = Reader(model, [[1, 2], [3]], 6, vocab_size=17)
        reader.read([[4, 5, 6], [7, 8, 9]])
        reader.truncate([3, 4])
        logits = reader.read([[10], [11]])
        assert_close(logits[0, -1], anew(model, [1, 2, 4, 10]), **CLOSE)
        assert_close(logits[1, -1], anew(model, [3, 7, 8, 9, 11]), **CLOSE)
        with pytest.raises(ValueError, match="text 0 has 4 tokens, the model sees the last 4"):
            reader.truncate([0, 1])


def test_rows_that_are_kept_may_repeat_and_change_their_order():
    model = build(SMALL)
    with inference(model):
        reader = Reader(model, [[1, 2, 3], [4]], 6, vocab_size=17)
        reader.keep([1, 0, 1])
        logits = reader.read([[5], [6], [7]])
        for row, text in enumerate([[4, 5], [1, 2, 3, 6], [4, 7]]):
            assert_close(logits[row, -1], anew(model, text), **CLOSE)
