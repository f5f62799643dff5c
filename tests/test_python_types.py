"""Values that Python passes: a wrong type is one error that names the setting or the prompt."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.kinds import model_of, tokenizer_of
from tinylm import sample
from tinylm.config import (
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    Run,
    SampleConfig,
    TokenizerConfig,
    TrackConfig,
    TrainConfig,
)
from tinylm.config.sections import SECTIONS


@pytest.mark.parametrize(
    ("section", "values", "error"),
    [
        (SampleConfig, {"heal": "no"}, "sample.heal='no': expected true or false"),
        (SampleConfig, {"bos": "no"}, "sample.bos='no': expected auto or true or false"),
        (SampleConfig, {"bos": 1}, "sample.bos=1: expected auto or true or false"),
        (SampleConfig, {"stop": [b"x"]}, "sample.stop=[b'x']: expected a list"),
        (SampleConfig, {"stop": b"x"}, "sample.stop=b'x': expected a list"),
        (SampleConfig, {"stop": (True,)}, "sample.stop=(True,): expected a list"),
        (SampleConfig, {"stop": None}, "sample.stop=null: expected a list"),
        (SampleConfig, {"top_k": 2.5}, "sample.top_k=2.5: expected a whole number, at least 1"),
        (SampleConfig, {"max_tokens": 2.0}, "sample.max_tokens=2.0: expected a whole number"),
        (SampleConfig, {"temperature": "1"}, "sample.temperature='1': expected a number"),
        (SampleConfig, {"temperature": None}, "sample.temperature=null: expected a number"),
        (SampleConfig, {"temperature": 10**400}, "expected a number, at least 0 and finite"),
        (ModelConfig, {"n_layers": "2"}, "model.n_layers='2': expected a whole number"),
        (ModelConfig, {"d_model": True}, "model.d_model=True: expected a whole number"),
        (ModelConfig, {"tied": 1}, "model.tied=1: expected true or false"),
        (ModelConfig, {"norm": 3}, "model.norm=3: expected rmsnorm or layernorm or"),
        (DataConfig, {"order": "fast"}, "data.order='fast': expected shuffle or sequential"),
        (DataConfig, {"source": None}, "data.source=null: expected a string"),
        (OptimConfig, {"betas": (0.9,)}, "optim.betas=(0.9,): expected a list of 2"),
        (OptimConfig, {"lr": [1]}, "optim.lr=[1]: expected a number, above 0"),
        (TrainConfig, {"compile": 1}, "train.compile=1: expected auto or true or false"),
        (TrainConfig, {"steps": 1e3}, "train.steps=1000.0: expected a whole number"),
        (CheckpointConfig, {"keep": None}, "checkpoint.keep=null: expected a whole number"),
        (EvaluateConfig, {"every": "1"}, "evaluate.every='1': expected a whole number"),
        (TokenizerConfig, {"special_tokens": (1,)}, "tokenizer.special_tokens=(1,): expected"),
        (TrackConfig, {"names": {"plot"}}, "track.names={'plot'}: expected a list of console"),
        (Run, {"name": 3}, "name=3: expected a string or null"),
        (Run, {"model": {"n_layers": 2}}, "model={'n_layers': 2}: expected a ModelConfig"),
    ],
)
def test_a_setting_of_a_wrong_type_is_refused_by_name(section, values, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        section(**values)


@pytest.mark.parametrize("section", [Run, *SECTIONS.values()])
def test_every_setting_refuses_an_object(section):
    for field in dataclasses.fields(section):
        with pytest.raises(ValueError, match=rf"{field.name}=.*: expected "):
            section(**{field.name: object()})


def test_what_means_the_same_is_taken():
    config = SampleConfig(top_k=np.int64(3), temperature=np.float32(0.5), stop=["a", np.int32(7)])
    assert (config.top_k, config.temperature, config.stop) == (3, 0.5, ("a", 7))
    assert [type(x) for x in (config.top_k, config.temperature, config.stop[1])] == [
        int,
        float,
        int,
    ]
    assert SampleConfig(temperature=1).temperature == 1
    assert OptimConfig(betas=[0.9, 0.95]).betas == (0.9, 0.95)
    assert OptimConfig(clip=None).clip == 0
    assert DataConfig(source=Path("a.txt")).source == "a.txt"


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ([1, 2], "prompt 0 is int 1: expected a list of prompts, each a list of ids"),
        (["ab"], "prompt 0 is str 'ab': expected"),
        ([[1], b"ab"], "prompt 1 is bytes b'ab': expected"),
        ([["a"]], "prompt 0 holds str 'a': expected"),
        ([[1, 2.5]], "prompt 0 holds float 2.5: expected"),
        ([[1], [True]], "prompt 1 holds bool True: expected"),
        ([[1, None]], "prompt 0 holds NoneType None: expected"),
        ([np.array([1.0])], "prompt 0 holds float 1.0: expected"),
        ([[[1]]], "prompt 0 holds list [1]: expected"),
        ("ab", "prompts='ab': expected"),
        (3, "prompts=3: expected"),
    ],
)
def test_prompts_that_are_no_ids_are_refused(prompts, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        sample.generate(model_of("bpe"), prompts, SampleConfig(max_tokens=1))


def test_prompts_may_be_arrays_tensors_and_tuples():
    model, config = model_of("bpe"), SampleConfig(max_tokens=3)
    expected = sample.generate(model, [[1, 2]], config)
    for prompts in ([(1, 2)], np.array([[1, 2]]), torch.tensor([[1, 2]]), [[np.int64(1), 2]]):
        assert sample.generate(model, prompts, config) == expected


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (b"ab", "prompt: expected a str, not bytes b'ab': decode it first"),
        ([1, 2], "prompt: expected a str, not list [1, 2]: generate() takes ids"),
        (None, "prompt: expected a str, not NoneType None"),
    ],
)
def test_a_text_prompt_that_is_no_text_is_refused(prompt, error):
    tokenizer = tokenizer_of("bpe")
    with pytest.raises(ValueError, match=re.escape(error)):
        list(sample.stream(model_of("bpe"), tokenizer, prompt, SampleConfig(max_tokens=1)))
