"""What a word in a file or an argument means: the number that it shows, or an error."""

from pathlib import Path

import pytest

from tinylm import config
from tinylm.config import ConfigError

REFUSED = object()
# A setting, a word as it is typed, and its value.
WORDS = [
    ("train.steps", "010", 10),
    ("train.steps", "1_000", 1000),
    ("train.steps", "+5", 5),
    ("train.steps", "1e5", REFUSED),
    ("train.steps", "12:30", REFUSED),
    ("train.steps", "5.0", REFUSED),
    ("train.steps", "yes", REFUSED),
    ("train.steps", "true", REFUSED),
    ("train.steps", "1" + "0" * 5000, REFUSED),
    ("train.steps", "\uff11\uff12", 12),
    ("train.steps", "null", REFUSED),
    ("data.stride", "null", None),
    ("data.stride", "~", None),
    ("optim.lr", "1e-3", 0.001),
    ("optim.lr", "1:30", REFUSED),
    ("optim.lr", "1e400", REFUSED),
    ("optim.lr", ".nan", REFUSED),
    ("optim.lr", "-inf", REFUSED),
    ("optim.lr", "on", REFUSED),
    ("data.mask_after_eos", "yes", True),
    ("data.mask_after_eos", "OFF", False),
    ("data.mask_after_eos", "2", REFUSED),
    ("data.mask_after_eos", "maybe", REFUSED),
    ("train.compile", "no", False),
    ("train.compile", "True", True),
    ("train.compile", "auto", "auto"),
    ("train.compile", "2", REFUSED),
    ("sample.stop", "[3, 010, '3', yes, 1e3]", (3, "010", "3", "yes", "1e3")),
    ("tokenizer.special_tokens", "[no, 010, 12:30, 2024-01-01]", ("no", "010", "12:30")),
    ("tokenizer.special_tokens", "[null]", REFUSED),
    ("optim.betas", "[0.9, 1e-1]", (0.9, 0.1)),
    ("name", "no", "no"),
    ("name", "010", "010"),
    ("name", "1e3", "1e3"),
    ("name", "2024-01-01", "2024-01-01"),
    ("data.source", "12.30", "12.30"),
    ("data.source", "off", "off"),
]


@pytest.mark.parametrize(("key", "word", "value"), WORDS, ids=lambda part: str(part)[:12])
@pytest.mark.parametrize("place", ["file", "argument"])
def test_a_word_means_what_it_shows(key, word, value, place, tmp_path):
    section, _, name = key.rpartition(".")
    file = tmp_path / "run.yaml"
    file.write_text(f"{section}: {{{name}: {word}}}" if section else f"{name}: {word}")
    source = (file, []) if place == "file" else (None, [f"{key}={word}"])
    if value is REFUSED:
        with pytest.raises(ConfigError, match=rf"^{key}=") as caught:
            config.load(*source)
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)
    else:
        found = config.flat(config.load(*source))[key]
        found = found[:3] if key == "tokenizer.special_tokens" else found
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {steps: 3, steps: 4}", "the key steps is given twice"),
        ("train: {steps: 3}\ntrain: {seed: 4}", "the key train is given twice"),
        ("name: a\nname: b", "the key name is given twice"),
        ("train.steps: 3\ntrain: {steps: 4}", "train.steps: given twice, the second time as 4"),
        ("train: {<<: {steps: 3}}", "unknown key 'train.<<'"),
        ("train: {steps: {a: 1}}", "train.steps={'a': '1'}: expected a whole number"),
        ("train: {steps: [3]}", "expected a whole number"),
        ("train: [steps]", "expected keys of the section"),
        ("train: 3", "train=3: no such preset"),
        ("train:\n\tsteps: 3", "not a YAML file"),
        ("train: {steps: 3}\n---\ntrain: {steps: 4}", "expected a single document"),
        ("? [a]\n: 3", "not a YAML file"),
        ("name: !!python/object:os.system x", "not a YAML file"),
        ("a: &a [*a]", "unknown key 'a'"),
        ("train: &a {steps: *a}", "train.steps"),
        ("train: {steps: " + "[" * 5000, "not a YAML file"),
    ],
)
def test_a_file_that_says_two_things_or_none_is_refused_by_name(text, words, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_and_an_empty_section_are_taken(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {steps: &n 7, seed: *n}\nmodel:\ndata: null\n")
    run = config.load(file)
    assert (run.train.steps, run.train.seed) == (7, 7)


@pytest.mark.parametrize("name", ["input.txt", "corpus", "data.jsonl"])
def test_a_text_given_for_settings_is_told_how_to_be_trained_on(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for file in ("input.txt", "data.jsonl"):
        Path(file).write_text("Title: a play\n")
    with pytest.raises(ConfigError, match=f"write data.source={name}"):
        config.load(name)
