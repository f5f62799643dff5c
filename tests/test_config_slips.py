"""Typing slips in the keys of settings: each is refused by name, and nearly all are understood."""

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinylm import config
from tinylm.config import ConfigError, sections
from tinylm.config.keys import nearest

KEYS = config.settings()


@st.composite
def slips(draw: st.DrawFn) -> tuple[str, str]:
    """A key, and the same with one letter dropped, doubled, swapped or replaced."""
    key = draw(st.sampled_from(sorted(KEYS)))
    at = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from(string.ascii_lowercase + "_"))
    slip = draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[:at] + key[at] + key[at:],
                key[:at] + letter + key[at:],
                key[:at] + letter + key[at + 1 :],
                key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
            ]
        )
    )
    assume(slip not in KEYS and slip not in sections.SECTIONS)
    return key, slip


@given(slips())
def test_every_slip_is_refused_by_its_name(slip):
    _, typed = slip
    with pytest.raises(ConfigError) as caught:
        config.load(None, [f"{typed}=1"])
    assert f"unknown key '{typed}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_key_that_was_meant_is_suggested_for_nearly_every_slip():
    right = total = 0
    # Every ninth key: all of them take 8 s.
    for key in [*KEYS][::9]:
        for at in range(len(key)):
            for slip in (
                key[:at] + key[at + 1 :],
                key[:at] + key[at] + key[at:],
                key[:at] + "x" + key[at + 1 :],
                key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
            ):
                if slip not in KEYS:
                    total += 1
                    right += nearest(slip) == key
    assert total > 700
    assert right >= 0.95 * total


@pytest.mark.parametrize("key", ["sample.prompt", "model.preset", "train.prompt", "train.epochs"])
def test_a_key_that_is_like_none_is_answered_with_those_of_its_section(key):
    section = key.partition(".")[0]
    with pytest.raises(ConfigError, match=f"unknown key '{key}': {section} has ") as caught:
        config.load(None, [f"{key}=1"])
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("model.lr", "optim.lr"), ("stesp", "train.steps"), ("foo.batch_size", "train.batch_size")],
)
def test_a_key_of_another_section_is_suggested_if_it_is_nearly_the_same(key, meant):
    with pytest.raises(ConfigError, match=f"unknown key '{key}': did you mean '{meant}'"):
        config.load(None, [f"{key}=1"])


@pytest.mark.parametrize(
    ("text", "key", "half"),
    [
        (r'tokenizer: {special_tokens: ["<|endoftext|>", "\ud800"]}', "special_tokens", "d800"),
        (r'sample: {stop: ["a", "b\udfff"]}', "sample.stop", "dfff"),
        (r'data: {source: "/tmp/\udcff.txt"}', "data.source", "dcff"),
    ],
)
def test_half_a_character_is_refused_by_the_key_and_its_value(text, key, half, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    message = str(caught.value)
    assert f"{key}=" in message
    assert f"'\\u{half}' is half a character" in message
    assert message.endswith(f"({file})")
    message.encode()
