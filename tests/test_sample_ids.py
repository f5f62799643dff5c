"""What stands before a prompt, which ids are drawn and where they end, and logits to refuse."""

import dataclasses
import json
import math

import pytest
import torch

from tests.support.kinds import TEXT, model_of, tokenizer_of
from tests.support.models import build
from tinylm import Tokenizer, sample
from tinylm.config import (
    ConfigError,
    Run,
    SampleConfig,
    TokenizerConfig,
    TrackConfig,
    load,
)
from tinylm.model import Origin
from tinylm.sample import decoding, prompt
from tinylm.sample.engine import Engine
from tinylm.sample.logits import RowError, check_largest


def with_post_processor(tmp_path, part):
    """A tokenizer whose file says what to put before a text."""
    path = tmp_path / "tokenizer.json"
    Tokenizer.train([TEXT], vocab_size=300, special_tokens=("<|endoftext|>", "<s>", "</s>")).save(
        path
    )
    document = json.loads(path.read_text())
    document["post_processor"] = part
    path.write_text(json.dumps(document))
    return Tokenizer.load(path)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<s>": {"id": "<s>", "ids": [298], "tokens": ["<s>"]},
        "</s>": {"id": "</s>", "ids": [299], "tokens": ["</s>"]},
    },
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@pytest.mark.parametrize(
    ("part", "opening"),
    [
        (None, (297,)),
        (BYTE_LEVEL, ()),
        (TEMPLATE, (298,)),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]}, (298,)),
        ({"type": "RobertaProcessing", "cls": ["<s>", 298], "sep": ["</s>", 299]}, (298,)),
    ],
)
def test_a_prompt_begins_as_its_tokenizer_file_says_or_else_as_in_training(tmp_path, part, opening):
    tokenizer = with_post_processor(tmp_path, part)

    def begun(bos, text="for"):
        return prompt.read(tokenizer, text, SampleConfig(bos=bos), 300).opening

    assert begun("auto") == opening
    assert begun(True) == (297,)
    assert begun(False) == ()
    # A new document begins with the end of another, or as the file says.
    assert begun("auto", "") == (opening or (297,))
    assert begun(False, "") == (297,)
    tokenizers = pytest.importorskip("tokenizers")
    if part is not None and part["type"] != "RobertaProcessing":
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ids = theirs.encode("for name", add_special_tokens=True).ids
        assert ids[: len(opening)] == [*opening]
        assert ids[len(opening)] not in (297, 298, 299)


def test_the_text_follows_the_end_of_another_as_in_training():
    tokenizer, model = tokenizer_of("gpt4"), model_of("gpt4")
    config = SampleConfig(heal=False, max_tokens=10, temperature=1.0)
    ids = tokenizer.encode("for name")
    for bos, begun in (("auto", [tokenizer.eos_id]), (True, [tokenizer.eos_id]), (False, [])):
        settings = dataclasses.replace(config, bos=bos)
        got = [*decoding.stream_ids(model, tokenizer, "for name", settings)]
        assert got == sample.generate(model, [[*begun, *ids]], config, tokenizer=tokenizer)[0]


def test_a_tokenizer_without_an_end_of_text_begins_with_the_prompt_itself():
    tokenizer = Tokenizer.train([TEXT], vocab_size=280, special_tokens=())
    assert prompt.read(tokenizer, "for", SampleConfig(), 280).opening == ()
    with pytest.raises(ValueError, match=r"sample\.bos=true: the tokenizer has no end-of-text"):
        prompt.read(tokenizer, "for", SampleConfig(bos=True), 280)
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompt.read(tokenizer, "", SampleConfig(), 280)


@pytest.mark.parametrize("gap", [1, 7, 140])
def test_an_id_that_no_token_has_is_never_drawn(tmp_path, gap):
    path = tmp_path / "tokenizer.json"
    tokenizer_of("byte").save(path)
    document = json.loads(path.read_text())
    document["model"]["vocab"]["<|endoftext|>"] = 256 + gap
    document["added_tokens"][0]["id"] = 256 + gap
    path.write_text(json.dumps(document))
    tokenizer = Tokenizer.load(path)
    assert [*tokenizer.missing_ids] == [*range(256, 256 + gap)]
    # A padded model: rows beyond the tokenizer as well.
    model = build(dataclasses.replace(model_of("byte").config, vocab_size=500))
    with torch.no_grad():
        model.head.weight[256:500] *= 30
    known = {*tokenizer.vocab}
    for temperature in (0.0, 1.0, 50.0):
        config = SampleConfig(temperature=temperature, max_tokens=60, samples=4)
        drawn = sample.generate(model, [[1], [2, 3]], config, tokenizer=tokenizer)
        assert {id for ids in drawn for id in ids} <= known
        assert isinstance("".join(sample.stream(model, tokenizer, "ab", config)), str)
    # Without a tokenizer nothing is known of the ids: they are all the model's.
    raw = sample.generate(model, [[1]], SampleConfig(temperature=50.0, max_tokens=200))
    assert not {*raw[0]} <= known


def test_ids_of_a_padded_model_may_stand_in_prompts_and_stops():
    tokenizer = tokenizer_of("byte")
    model = build(dataclasses.replace(model_of("byte").config, vocab_size=500))
    config = SampleConfig(temperature=0, max_tokens=8)
    plain = sample.generate(model, [[400, 1]], config, tokenizer=tokenizer)
    stopped = dataclasses.replace(config, stop=(400, plain[0][0]), min_tokens=2)
    (ids,) = sample.generate(model, [[400, 1]], stopped, tokenizer=tokenizer)
    assert len(ids) >= 2
    assert plain[0][0] not in ids[:2]
    # A penalty that changes nothing but counts all the same.
    counted = dataclasses.replace(config, repetition_penalty=1 + 1e-12)
    assert sample.generate(model, [[400, 1]], counted, tokenizer=tokenizer) == plain
    engine = Engine(model, tokenizer)
    engine.add([1], dataclasses.replace(counted, presence_penalty=0.1), drawn=[400])
    assert engine.step()


def test_a_bias_that_passes_the_range_of_float32_is_named():
    for bias in (1e39, -1e39):
        with pytest.raises(ValueError, match=r"sample\.logit_bias=-?1e\+39: .*finite in float32"):
            SampleConfig(logit_bias={5: bias})
    largest = SampleConfig(logit_bias={5: 3e38}, temperature=1.0, max_tokens=2)
    assert sample.generate(model_of("byte"), [[1]], largest) == [[5, 5]]
    with pytest.raises(RowError, match=r"or .*logit_bias=\{5: 3e\+38\} pass the range"):
        check_largest(torch.tensor([math.inf]), largest)


def test_a_text_ends_at_each_end_of_text_of_the_model():
    tokenizer, model = tokenizer_of("gpt4"), build(model_of("gpt4").config)
    config = SampleConfig(temperature=1.0, max_tokens=40, heal=False)
    whole = [*decoding.stream_ids(model, tokenizer, "for", config)]
    for ends in ((whole[5],), (whole[9], whole[3]), (whole[2], 1, whole[7])):
        model.origin = Origin(eos_ids=ends)
        first = next(i for i, id in enumerate(whole) if id in ends)
        assert [*decoding.stream_ids(model, tokenizer, "for", config)] == whole[:first]
        ids = [tokenizer.eos_id, *tokenizer.encode("for")]
        assert sample.generate(model, [ids], config, tokenizer=tokenizer) == [whole[:first]]


def overflowing(scale, dtype=torch.float16):
    """Finite weights whose logits pass the range of their dtype."""
    model = build(model_of("byte").config, dtype=torch.float32)
    with torch.no_grad():
        model.head.weight.fill_(scale).mul_(torch.linspace(-1, 1, 12))
        model.norm.weight.fill_(200)
    return model.to(dtype)


ALL = {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.3, "presence_penalty": 0.2}


@pytest.mark.parametrize("setting", [{}, *({k: v} for k, v in ALL.items()), ALL])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_past_float16_are_one_clear_error(setting, temperature):
    model, config = overflowing(6e4), SampleConfig(temperature=temperature, **setting)
    message = r"the logit of id \d+ after 2 tokens is -?(inf|nan) in float16: .* 65504.*float32"
    with pytest.raises(ValueError, match=message):
        sample.generate(model, [[1, 2]], config)
    with pytest.raises(ValueError, match=r"after 2 tokens is .* in float16"):
        "".join(sample.stream(model, tokenizer_of("byte"), "a", config))
    assert sample.generate(model.float(), [[1, 2]], dataclasses.replace(config, max_tokens=3))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["one", "a row", "all"])
def test_a_weight_that_is_not_finite_is_named(value, place):
    model = build(model_of("byte").config, dtype=torch.float32)
    with torch.no_grad():
        rows = {"one": slice(3, 4), "a row": slice(0, 3), "all": slice(None)}[place]
        model.head.weight[rows] = value
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"its weights are not finite \(head\.weight\)"):
            sample.generate(model, [[1]], SampleConfig(temperature=temperature))


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1e-320},
        {"frequency_penalty": -1.7e308},
        {"presence_penalty": -1e308, "frequency_penalty": -1e308},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_that_passes_the_range_of_float64_is_an_error(setting, temperature):
    model = model_of("byte")
    config = SampleConfig(temperature=temperature, max_tokens=300, **setting)
    with pytest.raises(ValueError, match=rf"largest logit .* {next(iter(setting))}=.*smaller"):
        sample.generate(model, [[1]], config)


def test_a_list_of_one_may_be_written_without_brackets(tmp_path):
    assert SampleConfig(stop="dog").stop == ("dog",)
    assert SampleConfig(stop=7).stop == (7,)
    assert SampleConfig(stop=["dog", 7]).stop == ("dog", 7)
    assert TokenizerConfig(special_tokens="<|endoftext|>").special_tokens == ("<|endoftext|>",)
    assert TrackConfig(names="jsonl").names == ("jsonl",)
    assert Run(imports="json").imports == ("json",)
    assert load(None, ["sample.stop=dog", "track.names=jsonl"]).sample.stop == ("dog",)
    file = tmp_path / "run.yaml"
    file.write_text("sample: {stop: dog}\n")
    assert load(file).sample.stop == ("dog",)
    with pytest.raises(ConfigError, match=r"sample\.stop=a,b: expected a list, such as \[a,b\]"):
        load(None, ["sample.stop=a,b"])


def test_a_stop_of_one_text_is_one_stop():
    tokenizer, model = tokenizer_of("byte"), model_of("byte")
    config = SampleConfig(temperature=1.0, max_tokens=60, seed=4)
    whole = "".join(sample.stream(model, tokenizer, "a", config))
    for stop in (whole[9:12], whole[20:23], "dog"):
        stopped = dataclasses.replace(config, stop=stop)
        assert "".join(sample.stream(model, tokenizer, "a", stopped)) == whole.partition(stop)[0]
