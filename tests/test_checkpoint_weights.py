"""Weights that do not fit config.json, files that were edited, and how often they are read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.crashes import make_model, save_step
from tinylm import checkpoint
from tinylm.checkpoint import files


@pytest.fixture
def folder(tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    (path / "MANIFEST.json").unlink()
    return path


def tensors_of(folder):
    return {k: t.clone() for k, t in load_file(folder / "model.safetensors").items()}


def refused(folder, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        checkpoint.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_counted_and_refused(value, folder):
    tensors = tensors_of(folder)
    tensors["model.norm.weight"][2:4] = value
    save_file(tensors, folder / "model.safetensors")
    refused(folder, r"model.norm.weight has 2 of 8 numbers that are not finite")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_their_dtype(dtype, folder):
    tensors = tensors_of(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, rf"model.norm.weight has dtype {dtype}: expected floating point")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"]
)
def test_a_pickle_of_any_name_is_refused_by_name(name, folder):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, rf"{name}: a pickle can run any code")


def test_an_adapter_of_another_kind_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"adapter_config.json: peft_type=None: TinyLM reads adapters of peft_type LORA")


def test_a_matrix_that_is_transposed_is_named(folder):
    tensors = tensors_of(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, folder / "model.safetensors")
    refused(folder, rf"{name} has shape \[8, 32\], expected \[32, 8\]")


def shards(folder, change):
    """The folder in two shards, with `change(first, second, index)` before they are written."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = [{k: tensors[k] for k in names[:3]}, {k: tensors[k] for k in names[3:]}]
    index = {k: f"{i}.safetensors" for i, part in enumerate(parts) for k in part}
    index = change(*parts, index) or index
    for i, part in enumerate(parts):
        save_file(part, folder / f"{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda one, two, index: two.update(one), r"1.safetensors: .* is in another shard as well"),
        (lambda one, two, index: index.pop(next(iter(two))) and None, r"lists no .* in this shard"),
        (
            lambda one, two, index: two.pop("model.norm.weight") is None,
            r"lists .*norm.weight, which",
        ),
        (lambda one, two, index: dict.fromkeys(index, "2.safetensors"), r"2.safetensors"),
        (lambda one, two, index: ["a"], r"index.json: expected the key weight_map"),
        (lambda one, two, index: dict.fromkeys(index, 3), r"index.json: expected the key"),
    ],
)
def test_an_index_that_its_shards_do_not_match_is_refused(change, match, folder):
    shards(folder, change)
    refused(folder, match)


def test_shards_that_match_their_index_are_read(folder):
    shards(folder, lambda one, two, index: None)
    model, _ = checkpoint.load(folder)
    assert torch.equal(model.norm.weight, make_model().norm.weight)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_an_edited_file_is_named_with_the_two_ways_out(name, tmp_path):
    path = checkpoint.save(tmp_path / "model", make_model(), None)
    with (path / name).open("ab") as file:
        file.write(b" ")
    match = rf"{name}: expected \d+ bytes.*remove .*MANIFEST.json or call .*verify=False"
    with pytest.raises(ValueError, match=match):
        checkpoint.load(path)
    if name.endswith(".json"):
        checkpoint.load(path, verify=False)
        (path / "MANIFEST.json").unlink()
        checkpoint.load(path)


def test_an_edited_checkpoint_of_a_run_opens_by_its_own_name(tmp_path):
    path = save_step(tmp_path, 10)
    (path / "config.json").write_text((path / "config.json").read_text() + " ")
    with pytest.raises(FileNotFoundError, match=r"config.json: expected .*remove .*MANIFEST"):
        checkpoint.load(tmp_path)
    assert torch.equal(
        checkpoint.load(path, verify=False)[0].norm.weight, make_model(10).norm.weight
    )
    assert checkpoint.load_training(path, verify=False).step == 10
    (path / "MANIFEST.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"MANIFEST.json: missing.* reads its model"):
        checkpoint.load(tmp_path)
    with pytest.warns(UserWarning, match="nothing shows that the checkpoint is whole"):
        checkpoint.load(path)


def test_each_file_is_hashed_once(tmp_path, monkeypatch):
    save_step(tmp_path, 10)
    hashed = []
    digest = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: hashed.append(path) or digest(path))
    checkpoint.load(tmp_path)
    assert (
        len(hashed)
        == len(set(hashed))
        == len(files.read_manifest(checkpoint.path_of(tmp_path, 10)))
    )
    hashed.clear()
    found = checkpoint.latest(tmp_path)
    checkpoint.load_training(found, verify=False)
    checkpoint.load(found, verify=False)
    assert len(hashed) == len(set(hashed))
