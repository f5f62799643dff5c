"""What a folder holds beside the model: read, acted on, and written back when it is saved."""

import json

import pytest
import torch

from tests.support.crashes import make_model
from tests.support.foreign import randomise
from tinylm import Tokenizer, checkpoint
from tinylm.config import ModelConfig
from tinylm.model import build


@pytest.fixture(scope="module")
def tokenizer():
    special = ("<|endoftext|>", "<|pad|>")
    return Tokenizer.train(["the cat sat on the mat"], vocab_size=262, special_tokens=special)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A folder as another program would have made it: without a manifest or our own key."""
    config = ModelConfig(vocab_size=300, d_model=8, n_layers=1, n_heads=2, context_length=6)
    path = checkpoint.save(tmp_path / "theirs", randomise(build(config)), tokenizer)
    (path / "MANIFEST.json").unlink()
    edit(path / "config.json", tinylm=None)
    return path


def edit(path, **changes):
    """Change keys of a JSON file, which need not be there; None takes a key away."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def again(path, tmp_path):
    model, tokenizer = checkpoint.load(path)
    saved = checkpoint.save(tmp_path / "again", model, tokenizer)
    return lambda name: json.loads((saved / name).read_text())


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, [7, 9], (7, 9)),
        ([7, 9], None, (7, 9)),
        ([3, 4, 3], [7], (7,)),
        (5, None, (5,)),
        ([], None, ()),
        (None, None, ()),
    ],
)
def test_every_id_that_ends_a_text_is_read_and_written_back(config, generation, expected, folder):
    edit(folder / "config.json", eos_token_id=config)
    edit(folder / "generation_config.json", eos_token_id=generation)
    model, tokenizer = checkpoint.load(folder)
    assert model.eos_ids == expected
    saved = checkpoint.save(folder.parent / "again", model, tokenizer)
    assert checkpoint.load(saved)[0].eos_ids == expected
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        assert json.loads((saved / name).read_text()).get("eos_token_id") == value


def test_without_any_word_the_default_of_transformers_ends_a_text(folder):
    edit(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert checkpoint.load(folder)[0].eos_ids == (2,)


@pytest.mark.parametrize("value", ["7", 2.0, [7, None], {"a": 1}, True])
def test_an_end_of_text_that_is_no_id_is_refused_with_its_file(value, folder):
    edit(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id=.*expected an id"):
        checkpoint.load(folder)


def test_every_other_key_and_file_is_written_back(folder, tmp_path):
    generation = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "x": [1, {"y": None}]}
    edit(folder / "generation_config.json", **generation)
    edit(folder / "config.json", pretraining_tp=1, initializer_range=0.5, mine={"a": [1]})
    edit(folder / "config.json", transformers_version="4.40.0", torch_dtype="float16")
    edit(folder / "tokenizer_config.json", chat_template="{{ x }}", add_bos_token=False)
    edit(folder / "special_tokens_map.json", eos_token="<|endoftext|>")
    edit(folder / "added_tokens.json", **{"<|pad|>": 261})
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    read = again(folder, tmp_path)
    assert read("generation_config.json") | generation == read("generation_config.json")
    kept = {"pretraining_tp": 1, "initializer_range": 0.5, "mine": {"a": [1]}}
    assert read("config.json") | kept == read("config.json")
    assert read("config.json")["dtype"] == "float32"
    assert "torch_dtype" not in read("config.json")
    assert read("tokenizer_config.json")["chat_template"] == "{{ x }}"
    assert read("tokenizer_config.json")["add_bos_token"] is False
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    checkpoint.verify(tmp_path / "again")


def test_ids_of_another_tokenizer_are_not_written_back(folder, tmp_path):
    edit(folder / "generation_config.json", eos_token_id=[7, 9], temperature=0.6)
    edit(folder / "added_tokens.json", **{"<|pad|>": 261})
    other = Tokenizer.train(["a b"], vocab_size=258, special_tokens=("<|endoftext|>",))
    model, _ = checkpoint.load(folder)
    saved = checkpoint.save(tmp_path / "again", model, other)
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation == {"eos_token_id": other.eos_id, "temperature": 0.6}
    assert not (saved / "added_tokens.json").exists()


def test_the_files_of_a_tokenizer_that_cannot_be_read_are_written_back(folder, tmp_path):
    content = json.dumps({"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": 0}}})
    (folder / "tokenizer.json").write_text(content)
    with pytest.warns(UserWarning, match="cannot read this tokenizer"):
        model, tokenizer = checkpoint.load(folder)
    saved = checkpoint.save(tmp_path / "again", model, tokenizer)
    assert (saved / "tokenizer.json").read_text() == content


def test_a_built_model_ends_at_nothing_of_its_own():
    assert make_model().eos_ids == ()


def test_our_own_record_is_outvoted_with_a_word(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    (path / "MANIFEST.json").unlink()
    edit(path / "config.json", rms_norm_eps=1e-3)
    with pytest.warns(
        UserWarning, match=r"norm_eps=0.001, tinylm.norm_eps=1e-05: the keys of llama"
    ):
        model, _ = checkpoint.load(path)
    assert model.config.norm_eps == 1e-3
    edit(path / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(ValueError, match=r"config.json: rope_parameters.rope_theta=500000.0 and"):
        checkpoint.load(path)
    edit(path / "config.json", rope_scaling={"type": "linear", "factor": 2.0})
    with pytest.raises(ValueError, match=r"config.json: rope_scaling="):
        checkpoint.load(path)


def test_float64_weights_lose_no_bit(tmp_path):
    model = make_model().double()
    with torch.no_grad():
        model.norm.weight.add_(1e-12)
    checkpoint.save(tmp_path / "model", model, None)
    back, _ = checkpoint.load(tmp_path / "model")
    assert torch.equal(back.norm.weight, model.norm.weight)


def test_loading_leaves_the_generator_of_torch_alone(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checkpoint.load(path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ids", [-1, 300, 10**9, [7, 5000, -1]])
def test_an_end_of_text_that_no_token_has_is_warned_of_by_file_id_and_vocabulary(ids, name, folder):
    (folder / "generation_config.json").unlink()
    edit(folder / name, eos_token_id=ids)
    wrong = "5000, -1" if isinstance(ids, list) else str(ids)
    message = f"{name}: eos_token_id={wrong}: the vocabulary has the ids 0 to 299"
    with pytest.warns(UserWarning, match=message) as caught:
        assert checkpoint.load(folder)[0].eos_ids == (tuple(ids) if wrong != str(ids) else (ids,))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_the_default_of_transformers_in_a_small_vocabulary_is_one_warning(tmp_path):
    config = ModelConfig(
        architecture="llama3", vocab_size=2, d_model=8, n_layers=1, n_heads=2, context_length=6
    )
    path = checkpoint.save(tmp_path / "theirs", randomise(build(config)), None)
    (path / "MANIFEST.json").unlink()
    (path / "generation_config.json").unlink(missing_ok=True)
    content = json.loads((path / "config.json").read_text())
    del content["tinylm"]
    content.pop("eos_token_id", None)
    (path / "config.json").write_text(json.dumps(content))
    with pytest.warns(
        UserWarning, match="config.json: eos_token_id=2: the vocabulary has the ids 0 to 1"
    ) as caught:
        checkpoint.load(path)
    assert len(caught) == 1
