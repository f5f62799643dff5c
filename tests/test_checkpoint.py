"""Checkpoints: what is written is read back, and what is damaged is named."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from tests.support.crashes import flip, holds_step, make_model, save_step, steps_in
from tinylm import checkpoint
from tinylm.checkpoint import Training
from tinylm.checkpoint.tensors import NAMES, pieces
from tinylm.config import ModelConfig, OptimConfig
from tinylm.optim import build as build_optimizer


def test_a_damaged_file_is_named_with_what_was_expected_and_found(tmp_path):
    path = save_step(tmp_path, 10)
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    expected = f"{weights}: expected {len(content)} bytes, found {len(content) - 1}: it changed"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}.*remove .*MANIFEST.json"):
        checkpoint.load(path)
    weights.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(
        ValueError, match=r"expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}: it changed"
    ):
        checkpoint.load(path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"missing, MANIFEST.json lists it"):
        checkpoint.load(path)


def test_a_right_sized_file_of_zeros_is_found(tmp_path):
    path = save_step(tmp_path, 10)
    size = (path / "optimizer.safetensors").stat().st_size
    (path / "optimizer.safetensors").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"optimizer.safetensors: expected sha256"):
        checkpoint.load_training(path)


def test_a_checkpoint_without_its_manifest_was_never_finished(tmp_path):
    path = save_step(tmp_path, 10)
    (path / "MANIFEST.json").unlink()
    for read in (checkpoint.verify, checkpoint.load_training):
        with pytest.raises(ValueError, match=r"MANIFEST.json: missing, .* reads its model"):
            read(path)
    with pytest.warns(UserWarning, match=r"MANIFEST.json: missing, so nothing shows"):
        assert checkpoint.load(path)[1] is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"files": 3}', b"[" * 100_000, b"\xff"])
def test_a_manifest_of_any_other_content_is_refused(content, tmp_path):
    path = save_step(tmp_path, 10)
    (path / "MANIFEST.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"MANIFEST.json: does not match its own hash"):
        checkpoint.verify(path)


def test_files_beside_the_listed_ones_do_no_harm(tmp_path):
    path = save_step(tmp_path, 10)
    (path / "notes.txt").write_text("the good one")
    (path / "plots").mkdir()
    assert holds_step(path, 10)


def test_latest_falls_back_loudly_past_a_damaged_checkpoint(tmp_path):
    for step in (10, 20, 30):
        save_step(tmp_path, step)
    flip(checkpoint.path_of(tmp_path, 30) / "state.json", 5)
    (checkpoint.path_of(tmp_path, 20) / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"damaged: .*state.json: expected.*config.json: missing"):
        newest = checkpoint.latest(tmp_path)
    assert newest == checkpoint.path_of(tmp_path, 10)
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(checkpoint.load(tmp_path)[0].norm.weight, make_model(10).norm.weight)
    with pytest.raises(ValueError, match=r"state.json: expected"):
        checkpoint.load(checkpoint.path_of(tmp_path, 30))


def test_latest_goes_by_the_number_not_by_the_name_or_the_clock(tmp_path):
    for step in (99_999_999, 100_000_000, 7):
        save_step(tmp_path, step)
    assert checkpoint.step_of(checkpoint.latest(tmp_path)) == 100_000_000


def test_a_run_without_a_valid_checkpoint_is_not_found(tmp_path):
    for empty in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no checkpoint that verifies"):
            checkpoint.latest(empty)
    path = save_step(tmp_path, 10)
    flip(path / "model.safetensors", -1)
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: expected sha256"):
        checkpoint.latest(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such run, checkpoint or model"):
        checkpoint.load(tmp_path / "nowhere")


def test_purge_counts_only_checkpoints_that_verify(tmp_path):
    for step in (10, 20, 30, 40):
        save_step(tmp_path, step)
    for step in (30, 40):
        flip(checkpoint.path_of(tmp_path, step) / "model.safetensors", -1)
    assert checkpoint.purge(tmp_path, 1) == [checkpoint.path_of(tmp_path, 10)]
    assert steps_in(tmp_path) == [f"step-000000{step}" for step in (20, 30, 40)]


def test_purge_keeps_what_it_is_told_to_keep(tmp_path):
    for step in (10, 20, 30, 40):
        save_step(tmp_path, step)
    deleted = checkpoint.purge(tmp_path, 1, also_keep={20})
    assert [checkpoint.step_of(path) for path in deleted] == [30, 10]
    assert steps_in(tmp_path) == ["step-00000020", "step-00000040"]
    with pytest.raises(ValueError, match="keep=0: must be at least 1"):
        checkpoint.purge(tmp_path, 0)


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("four years")
    with pytest.raises(FileExistsError, match="holds other things than a checkpoint"):
        checkpoint.save(tmp_path, make_model(), None)
    assert (tmp_path / "thesis.txt").read_text() == "four years"


def test_a_torn_checkpoint_is_replaced(tmp_path):
    path = checkpoint.path_of(tmp_path, 10)
    path.mkdir(parents=True)
    (path / "half.bin").write_text("?")
    save_step(tmp_path, 10)
    assert holds_step(path, 10)


def test_training_state_comes_back_exactly_and_survives_its_file(tmp_path):
    model = make_model()
    optimizer = build_optimizer(model, OptimConfig())
    model.train().loss(torch.randint(11, (2, 6)), torch.randint(11, (2, 6))).backward()
    optimizer.step(1.0)
    state = {"rng": [2**63, -1], "rate": 0.1 + 0.2, "name": "\u00e9", "nested": {"none": None}}
    training = Training(3, 36, optimizer.state(), state)
    path = checkpoint.save(tmp_path / "model", model, None, training=training)
    back = checkpoint.load_training(path)
    shutil.rmtree(path)
    assert (back.step, back.tokens, back.state) == (3, 36, state)
    assert back.optimizer.keys() == training.optimizer.keys()
    for name, tensor in training.optimizer.items():
        assert torch.equal(back.optimizer[name], tensor)
        assert back.optimizer[name].dtype == tensor.dtype
        # The optimizer goes on writing into it.
        back.optimizer[name].add_(1)


def test_an_optimizer_without_state_is_saved_and_read(tmp_path):
    training = Training(0, 0, {}, {})
    path = checkpoint.save(tmp_path / "model", make_model(), None, training=training)
    assert checkpoint.load_training(path) == training


def test_a_model_saved_without_training_state_has_none(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    with pytest.raises(FileNotFoundError, match=r"state.json"):
        checkpoint.load_training(path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(
    architecture=st.sampled_from(["gpt2", "llama3"]),
    norm=st.sampled_from([None, "rmsnorm", "layernorm"]),
    tied=st.booleans(),
    heads=st.integers(1, 4),
    layers=st.integers(1, 3),
    vocab_size=st.integers(1, 40),
    dropout=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 9),
)
def test_a_model_of_any_shape_comes_back_bit_for_bit(
    architecture, norm, tied, heads, layers, vocab_size, dropout, dtype, seed, tmp_path
):
    config = ModelConfig(
        architecture=architecture,
        norm=norm,
        tied=tied,
        n_heads=heads,
        d_model=4 * heads,
        n_layers=layers,
        vocab_size=vocab_size,
        dropout=dropout,
        context_length=5,
    )
    model = make_model(seed, config).to(dtype)
    checkpoint.save(tmp_path / "model", model, None)
    back, _ = checkpoint.load(tmp_path / "model")
    assert back.config == config
    assert not back.training
    for name, tensor in model.state_dict().items():
        assert back.state_dict()[name].dtype == dtype
        assert torch.equal(back.state_dict()[name], tensor), name


def test_tensor_files_are_byte_for_byte_those_of_the_library():
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (0,), (3,), (2, 3), (1, 5, 1)]
    tensors = {
        f"{name} {i} \u00e9": (torch.randn(shape, generator=generator) * 9).to(dtype)
        for dtype, name in NAMES.items()
        for i, shape in enumerate(shapes)
    }
    for metadata in (None, {"format": "pt"}):
        assert load(b"".join(pieces(tensors, metadata))).keys() == tensors.keys()
        for dtype in NAMES:
            some = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
            assert b"".join(pieces(some, metadata)) == save(some, metadata)
    assert b"".join(pieces({})) == save({})


def test_a_dtype_without_a_name_in_the_format_is_refused():
    with pytest.raises(ValueError, match=r"phase has dtype torch.complex64: a .* F64"):
        list(pieces({"phase": torch.zeros(2, dtype=torch.complex64)}))


def test_a_dtype_that_is_asked_for_is_given(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    model, _ = checkpoint.load(path, dtype=torch.bfloat16)
    assert model.embedding.weight.dtype == torch.bfloat16


def tinker(path, change):
    """Change the tensors of a checkpoint, and drop the manifest that would notice."""
    from safetensors.torch import load_file, save_file

    tensors = {
        name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()
    }
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    (path / "MANIFEST.json").unlink()


def test_weights_that_do_not_fit_are_named_on_one_line(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)

    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["extra.weight"] = torch.zeros(2)
        tensors["model.embed_tokens.weight"] = torch.zeros(12, 8)

    tinker(path, change)
    with pytest.raises(ValueError, match=r"lacks model.norm.weight") as error:
        checkpoint.load(path)
    message = str(error.value)
    assert "has an unexpected extra.weight" in message
    assert "model.embed_tokens.weight has shape [12, 8], expected [11, 8]" in message
    assert "\n" not in message


def test_many_missing_weights_are_counted(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    tinker(path, lambda tensors: [tensors.pop(name) for name in list(tensors)[1:]])
    with pytest.raises(ValueError, match=r"lacks (\S+, ){2}\S+ and 7 more"):
        checkpoint.load(path)


def test_whole_numbers_among_the_weights_are_refused(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    tinker(path, lambda tensors: tensors.update({"q": torch.zeros(2, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=r"q has dtype torch.int8: expected floating point"):
        checkpoint.load(path)


def test_a_pickle_is_refused_unread(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    (path / "MANIFEST.json").unlink()
    with pytest.raises(ValueError, match="a pickle can run any code"):
        checkpoint.load(path)


def test_files_that_are_not_what_their_name_says_are_named(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    (path / "MANIFEST.json").unlink()
    (path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(ValueError, match=r"model.safetensors: not a safetensors file"):
        checkpoint.load(path)
    (path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json: expected a JSON object, found list"):
        checkpoint.load(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        checkpoint.load(path)


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    (path / "MANIFEST.json").unlink()
    (path / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a shard is a file of the same folder"):
        checkpoint.load(path)
