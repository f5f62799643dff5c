"""Structured texts: every continuation meets its schema, expression, choices or grammar."""

import json
import re
from dataclasses import replace

import pytest
import torch

from tests.support.kinds import model_of, tokenizer_of
from tinylm import sample
from tinylm.config import ConfigError, SampleConfig
from tinylm.sample.drawer import Drawer
from tinylm.sample.grammar import Structures

pytest.importorskip("llguidance", reason="structured texts need pip install 'tinylm[grammar]'")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["node", "for"]}, "n": {"type": "integer", "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
COMPACT = {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}
CONFIG = SampleConfig(temperature=1.0, max_tokens=80, samples=4)
LARK = 'start: "x" digit+ "y"\ndigit: "1" | "2"'


def texts(kind, **settings):
    """Continuations, as texts, and whether each came to its end."""
    tokenizer, model, config = tokenizer_of(kind), model_of(kind), replace(CONFIG, **settings)
    begun = [tokenizer.eos_id, *tokenizer.encode("for name")]
    found = sample.generate(model, [begun], config, tokenizer=tokenizer)
    return [(tokenizer.decode(ids), len(ids) < config.max_tokens) for ids in found]


@pytest.mark.parametrize("kind", ["gpt4", "char", "whitespace", "byte"])
def test_every_continuation_that_ends_meets_its_structure(kind):
    for text, ended in texts(kind, json_schema=json.dumps(COMPACT)):
        if ended:
            value = json.loads(text)
            assert value["name"] in ("node", "for")
            assert value["n"] <= 99
    ends = []
    for text, ended in texts(kind, regex=r"[a-f]{2,5}(-[0-9]{1,2})?"):
        assert ended
        assert re.fullmatch(r"[a-f]{2,5}(-[0-9]{1,2})?", text)
    for text, ended in texts(kind, choice=("names", "nodes", "n", "caf\u00e9 \u20ac")):
        assert text in ("names", "nodes", "n", "caf\u00e9 \u20ac")
        assert ended
    for text, ended in texts(kind, grammar=LARK):
        ends.append(ended)
        assert re.fullmatch("x[12]+y" if ended else "x[12]*", text)
    assert any(ends)


def test_a_schema_may_be_in_a_file_and_stream_and_beams_meet_it_too(tmp_path):
    tokenizer, model = tokenizer_of("gpt4"), model_of("gpt4")
    (file := tmp_path / "schema.json").write_text(json.dumps(COMPACT))
    config = replace(CONFIG, samples=1, json_schema=str(file), max_tokens=60)
    for settings in (config, replace(config, num_beams=2), replace(config, temperature=0.0)):
        text = "".join(sample.stream(model, tokenizer, "for name", settings))
        if text.endswith("}"):
            assert json.loads(text)["name"] in ("node", "for")
        else:
            assert re.match(r'\{"(n|name)":', text)


def test_a_structure_is_taken_back_with_the_tokens_and_goes_on_after_the_end():
    tokenizer, size = tokenizer_of("gpt4"), tokenizer_of("gpt4").vocab_size
    config = replace(CONFIG, regex="ab?c", samples=1)
    drawer = Drawer(
        config, [[1]], [(0, 0)], vocab_size=size, device=torch.device("cpu"), tokenizer=tokenizer
    )
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    logits = torch.zeros(1, size)

    def allowed():
        return {id for id in (a, b, c, tokenizer.eos_id) if drawer.processed(logits)[0, id] == 0}

    assert allowed() == {a}
    drawer.push([a])
    drawer.keep([0, 0])
    drawer.push([b, c])
    both = drawer.processed(logits.expand(2, -1))
    assert both[0, c] == 0 > both[0, b]
    assert both[1, tokenizer.eos_id] == 0 > both[1, c]
    drawer.keep([1])
    # A draft may guess on after the end.
    for _ in range(3):
        drawer.push([tokenizer.eos_id])
        assert allowed() == {tokenizer.eos_id}
    drawer.truncate([3])
    assert allowed() == {tokenizer.eos_id}
    drawer.truncate([1])
    assert allowed() == {b, c}
    drawer.truncate([0])
    assert allowed() == {a}


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"json_schema": "{"}, r"sample\.json_schema=\{: "),
        ({"json_schema": '{"type": "nothing"}'}, "sample.json_schema="),
        ({"json_schema": '{"type": "integer", "minimum": 3, "maximum": 2}'}, "sample.json_schema="),
        ({"regex": "a("}, r"sample\.regex=a\(: "),
        ({"grammar": "start: other\n"}, "sample.grammar=start: other: "),
    ],
)
def test_a_structure_that_is_wrong_or_cannot_be_met_is_one_line(setting, problem):
    structures = Structures(tokenizer_of("gpt4"), 330)
    with pytest.raises(ConfigError, match=problem) as caught:
        structures.matcher(SampleConfig(**setting))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_structure_needs_a_tokenizer_that_can_end_a_text(tmp_path):
    with pytest.raises(ConfigError, match=r"sample\.regex=a: needs a tokenizer with an end"):
        sample.generate(model_of("gpt4"), [[1]], SampleConfig(regex="a"))
    missing = SampleConfig(json_schema=str(tmp_path / "none.json"))
    with pytest.raises(OSError, match=r"none\.json"):
        Structures(tokenizer_of("gpt4"), 330).matcher(missing)
