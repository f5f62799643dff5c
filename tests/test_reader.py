"""Reading: the logits of growing texts, of unequal length, against reading each anew."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.models import CLOSE, build
from tinylm import cache
from tinylm.config import ModelConfig, SampleConfig
from tinylm.model import inference
from tinylm.sample.drawer import BLOCK, Drawer
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
    build_cache=st.sampled_from([cache.build, partial(cache.build, kind="paged", page=2)]),
    data=st.data(),
)
def test_texts_of_unequal_length_are_read_as_if_each_were_alone(
    texts, seed, position, sizes, at_once, build_cache, data
):
    model = build(replace(SMALL, position=position), seed)
    generator = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch, inference(model):
        patch.setattr("tinylm.sample.reader.AT_ONCE", at_once)
        reader = Reader(model, texts, sum(sizes), vocab_size=17, build=build_cache)
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
            # A draft is taken back row by row, also over a move of the window.
            texts = [text[: data.draw(st.integers(1, len(text)))] for text in texts]
            reader.truncate([len(text) for text in texts])


@pytest.mark.parametrize("lengths", [[0, 1], [2], [2, 4]])
def test_a_length_that_a_text_has_not_is_refused_and_nothing_is_cut(lengths):
    model = build(SMALL)
    with inference(model):
        reader = Reader(model, [[1, 2], [3]], 6, vocab_size=17)
        with pytest.raises(ValueError, match=r"the texts have 1 to \[2, 1\] tokens"):
            reader.truncate(lengths)
        with pytest.raises(ValueError, match="one row for each of 2 texts"):
            reader.read([[4, 5], [6]])
        logits = reader.read([[4], [5]])
        assert_close(logits[0, -1], anew(model, [1, 2, 4]), **CLOSE)
        assert_close(logits[1, -1], anew(model, [3, 5]), **CLOSE)


PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1}


@pytest.mark.parametrize("penalties", [{}, PENALTIES])
def test_what_is_drawn_again_after_a_draft_is_what_was_drawn_before(penalties):
    config = SampleConfig(temperature=1.0, **penalties)
    logits = torch.randn(3 * BLOCK, 2, 17, generator=torch.Generator().manual_seed(3)).double()
    drawer = Drawer(
        config, [[1], [2, 3]], [(0, 0), (1, 4)], vocab_size=17, device=torch.device("cpu")
    )
    first = [drawer.draw(step) for step in logits]
    for back in (BLOCK + 1, 3, 0):
        drawer.truncate([back, back])
        assert [drawer.draw(step) for step in logits[back:]] == first[back:]
    # One text goes back further than the other, each to its own number.
    drawer.truncate([5, 9])
    again = drawer.draw(torch.stack((logits[5, 0], logits[9, 1])))
    assert again == [first[5][0], first[9][1]]
    with pytest.raises(ValueError, match=r"the texts have drawn \[6, 10\] tokens"):
        drawer.truncate([7, 1])


def test_rows_that_are_kept_may_repeat_and_change_their_order():
    model = build(SMALL)
    with inference(model):
        reader = Reader(model, [[1, 2, 3], [4]], 6, vocab_size=17)
        reader.keep([1, 0, 1])
        logits = reader.read([[5], [6], [7]])
        for row, text in enumerate([[4, 5], [1, 2, 3, 6], [4, 7]]):
            assert_close(logits[row, -1], anew(model, text), **CLOSE)
