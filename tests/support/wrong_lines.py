"""The wrong lines of `make mutants` in Python: where each stands, and which tests must fail on it.

A new seam adds the wrong lines that it could have; tests/test_mutants.py holds that each right
line stands once in its file. `wrong_kernels` has those of kernels, `wrong_caches` those of caches,
`wrong_rust` those in Rust.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One line of a file, what stands there instead, and the tests that must see it.

    `rungs` is a pytest -k expression over the file `tests`.
    """

    path: str
    line: str
    instead: str
    rungs: str
    tests: str = "tests/test_ladder.py"


PYTHON = [
    Mutant(
        "python/tinylm/ops/norms.py",
        "wide.square().mean(-1, keepdim=True) + eps)",
        "wide.square().mean(-1, keepdim=True)) + eps",
        "rms_norm-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops/positions.py",
        "torch.cat((first * cos - second * sin, second * cos + first * sin), -1)",
        "torch.cat((first * cos + second * sin, second * cos - first * sin), -1)",
        "rope-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops/positions.py",
        "normed = normed * weight",
        "normed = normed * weight.flip(-1)",
        "norm_rope-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops/attentions.py",
        "queries == keys or not mask.causal)",
        "queries <= keys or not mask.causal)",
        "attention-tensors-ops or decode_with",
    ),
    Mutant(
        "python/tinylm/ops/activations.py",
        'return F.gelu(x, approximate="tanh")',
        "return F.gelu(x)",
        "gelu-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops/attentions.py",
        "k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)",
        "k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
        "manual_attention",
    ),
    Mutant(
        "python/tinylm/layers/attention.py",
        "v = self._split(self._values(v, context), self.kv_heads)",
        "v = context.rotate(self._split(self._values(v, context), self.kv_heads))",
        "transformer-tensors-model",
    ),
    Mutant(
        "python/tinylm/model.py",
        "positions = cache.lengths[:, None] + positions",
        "positions = positions[None]",
        "decode_with",
    ),
    Mutant(
        "python/tinylm/ops/quant.py",
        "return nibbles[..., 0] | nibbles[..., 1] << 4, scales",
        "return nibbles[..., 1] | nibbles[..., 0] << 4, scales",
        "quantise_int4",
    ),
    Mutant(
        "python/tinylm/ops/quant.py",
        ".clamp_min(torch.finfo(dtype).tiny)",
        ".clamp_min(0)",
        "quantise_int8",
    ),
    Mutant(
        "python/tinylm/optim/muon.py",
        "ahead = torch._foreach_lerp(gradients, momenta[some], beta)",
        "ahead = momenta[some]",
        "muon",
    ),
    Mutant(
        "python/tinylm/optim/groups.py",
        '"decays": True}',
        '"decays": False}',
        "adamw or sgd or muon",
    ),
    Mutant(
        "python/tinylm/optim/schedules.py",
        "past = max(0.0, progress - config.warmup)",
        "past = progress - config.warmup",
        "schedule",
    ),
    Mutant(
        "python/tinylm/data/batch.py",
        "None if self.documents is None else self.documents[which],",
        "None if self.positions is None else self.positions[which],",
        "micro_batch",
        "tests/test_loader.py",
    ),
    Mutant(
        "python/tinylm/data/loader.py",
        'self._row += self._slice["batch_size"]',
        'self._row += self._slice["batch_size"] // self._slice["world_size"]',
        "batches_resumed",
    ),
    Mutant(
        "python/tinylm/tokenizer/contents.py",
        "for end in range(1, len(content))}",
        "for end in range(2, len(content))}",
        "added_tokens",
    ),
    Mutant(
        "python/tinylm/tokenizer/huggingface.py",
        "document = dict(contents.kept or DOCUMENT)",
        "document = dict(DOCUMENT)",
        "written_back",
        "tests/test_tokenizer_json.py",
    ),
    Mutant(
        "python/tinylm/tokenizer/checks.py",
        "or (isinstance(value, bool) and kind is not bool) or not fits:",
        "or not fits:",
        "another_type",
        "tests/test_tokenizer_json.py",
    ),
    Mutant(
        "python/tinylm/tokenizer/json_models.py",
        'checked(value, bool, f"model.{name}")',
        'checked(bool(value), bool, f"model.{name}")',
        "another_type",
        "tests/test_tokenizer_json.py",
    ),
    Mutant(
        "python/tinylm/tokenizer/huggingface.py",
        'flag: checked(entry.get(flag, flag == "special"), bool, place + flag)',
        'flag: checked(flag == "special", bool, place + flag)',
        "always_match",
        "tests/test_tokenizer_added.py",
    ),
    Mutant(
        "python/tinylm/optim/muon.py",
        "rows, columns = shape[-2:]",
        "rows, columns = shape[:2]",
        "stack",
        "tests/test_optim.py",
    ),
    Mutant(
        "python/tinylm/convert/tensors.py",
        'zip("qkv", tensor.chunk(3), strict=True)',
        'zip("kqv", tensor.chunk(3), strict=True)',
        "state_dict or transformers",
        "tests/test_convert.py",
    ),
    Mutant(
        "python/tinylm/convert/llama.py",
        'default = stated.get("rope_theta", DEFAULT_THETA)',
        "default = DEFAULT_THETA",
        "base_of_the_angles",
        "tests/test_convert.py",
    ),
    Mutant(
        "python/tinylm/config/model.py",
        "return -(-8 * self.d_model // 3 // 16) * 16",
        "return 8 * self.d_model // 3 // 16 * 16",
        "width_of_the_feedforward",
        "tests/test_config.py",
    ),
    Mutant(
        "python/tinylm/evaluate/scoring.py",
        "start = 0 if whole else 1",
        "start = 0",
        "limit_scores",
        "tests/test_evaluate.py",
    ),
    Mutant(
        "python/tinylm/evaluate/python.py",
        "return len({node.lineno for node in statements if not _is_string(node)})",
        "return len({node.lineno for node in statements})",
        "three_lines",
        "tests/test_evaluate.py",
    ),
    Mutant(
        "python/tinylm/data/shards.py",
        "_rust.xxh3_64(data[at : at + BLOCK_BYTES])",
        "_rust.xxh3_64(data[:BLOCK_BYTES])",
        "damaged_lengths",
    ),
    Mutant(
        "python/tinylm/lazy.py",
        "fromlist=[name]",
        "fromlist=[]",
        "name",
        "tests/test_lazy.py",
    ),
    Mutant(
        "python/tinylm/disk.py",
        "        lock.forget()",
        "        del lock",
        "fork",
        "tests/test_disk.py",
    ),
    Mutant(
        "python/tinylm/disk.py",
        "            if _is(handle, path):",
        "            if True:",
        "waits",
        "tests/test_disk.py",
    ),
    Mutant(
        "python/tinylm/disk.py",
        "        part.replace(path)\n",
        "        path.write_bytes(part.read_bytes())\n        part.unlink()\n",
        "replaced",
        "tests/test_disk.py",
    ),
    Mutant(
        "python/tinylm/disk.py",
        "{os.getpid()}-{os.urandom(4).hex()}.part",
        "{os.getpid()}-00000000.part",
        "two_writers",
        "tests/test_disk.py",
    ),
    Mutant(
        "python/tinylm/disk.py",
        "                if _is(self._handle, self._path):",
        "                if True:",
        "came_after",
        "tests/test_disk.py",
    ),
    Mutant(
        "python/tinylm/disk.py",
        "        if not all(is_leftover(path) for path in folder.iterdir()):",
        "        if False:",
        "before_it_had_the_lock",
        "tests/test_data.py",
    ),
    Mutant(
        "python/tinylm/corpus/download.py",
        '    with disk.Lock(path.parent, advice="release its lock first", wait=True):',
        "    if True:",
        "one_downloads",
        "tests/test_corpus.py",
    ),
    Mutant(
        "python/tinylm/checkpoint/files.py",
        "    with _locked(folder):",
        "    with ExitStack():",
        "clears_up",
        "tests/test_checkpoint_torture.py",
    ),
    Mutant(
        "python/tinylm/data/preparation.py",
        "if (folder / NAME).exists():\n            # Again",
        "if False:\n            # Again",
        "two_processes",
        "tests/test_data.py",
    ),
    Mutant(
        "python/tinylm/data/folders.py",
        " and reading.agrees_with(manifest.source)",
        "",
        "shards_fit",
        "tests/test_data_folders.py",
    ),
    Mutant(
        "python/tinylm/train/session.py",
        "start = _chain(0, stream, rank) ^ _chain(0, 0, 0)",
        "start = stream + rank",
        "seeds_differ",
        "tests/test_train.py",
    ),
    Mutant(
        "python/tinylm/train/session.py",
        "mix(seed, stream, step, micro, self.rank)",
        "mix(seed, stream, step, micro, 0)",
        "from_its_rank",
        "tests/test_train_ownership.py",
    ),
    Mutant(
        "python/tinylm/train/beginning.py",
        "    if there is not None and resumed is not None:",
        "    if there is not None and resumed is None:",
        "hashed_once",
        "tests/test_train_ownership.py",
    ),
    Mutant(
        "python/tinylm/train/beginning.py",
        "run.train.steps <= length:",
        "training.step >= run.train.steps:",
        "stopped_early_is",
        "tests/test_train_ownership.py",
    ),
    Mutant(
        "python/tinylm/train/folder.py",
        "_lock(self.folder) if _is_run(self.folder) else None",
        "None",
        "second_process",
        "tests/test_train_ownership.py",
    ),
    Mutant(
        "python/tinylm/mask.py",
        "present & (s < self.prefix[:, None, None, None])",
        "(s < self.prefix[:, None, None, None])",
        "mask-lists-mask",
    ),
    Mutant(
        "python/tinylm/mask.py",
        "p = past[:, None, None, None] + torch.arange(queries, device=device)[:, None]",
        "p = past[:, None, None, None] + torch.arange(queries, device=device)[:, None] + 1",
        "mask-lists-mask or behind",
    ),
    Mutant(
        "python/tinylm/ops/attentions.py",
        "own = mask.rows(some)",
        "own = mask",
        "behind",
    ),
    Mutant(
        "python/tinylm/ops/attentions.py",
        "k, v = k[:, :, -window:], v[:, :, -window:]",
        "k, v = k[:, :, :window], v[:, :, :window]",
        "lone_query",
        "tests/test_attentions.py",
    ),
    Mutant(
        "python/tinylm/model.py",
        "loss = loss + own",
        "loss = loss + own.detach()",
        "loss_of_its_own",
        "tests/test_model.py",
    ),
    Mutant(
        "python/tinylm/layers/positions.py",
        "cos, sin = cos[:, None], sin[:, None]",
        "cos, sin = cos[:1], sin[:1]",
        "packed",
        "tests/test_model.py",
    ),
    Mutant(
        "python/tinylm/sample/reader.py",
        "place = (ends - 1 - start).clamp(0, part.size(1) - 1)",
        "place = (ends - start).clamp(0, part.size(1) - 1)",
        "unequal",
        "tests/test_reader.py",
    ),
    Mutant(
        "python/tinylm/sample/drawer.py",
        "uniforms(seed, *self.place, first, BLOCK, stream=stream)",
        "uniforms(seed, *self.place, 0, BLOCK, stream=stream)",
        "block_of_them_ends",
        "tests/test_sample.py",
    ),
    Mutant(
        "python/tinylm/train/step.py",
        "part = batch.rows(slice(micro * size, (micro + 1) * size))",
        "part = batch",
        "packed_rows_reach",
        "tests/test_train.py",
    ),
    Mutant(
        "python/tinylm/ops/fake.py",
        "return dy, None",
        "return 0.5 * dy, None",
        "linear_with_fake",
    ),
    Mutant(
        "python/tinylm/ops/ternary.py",
        "packed >> shift & 3 for shift in (0, 2, 4, 6)",
        "packed >> shift & 3 for shift in (0, 2, 6, 4)",
        "ternary_packing",
    ),
    Mutant(
        "python/tinylm/ops/static.py",
        "round_().clamp_(-127, 127)",
        "round_().clamp_(-100, 127)",
        "8_bits_with",
    ),
    Mutant(
        "python/tinylm/train/finetuning.py",
        "settings.qat_share(step / settings.steps)",
        "settings.qat_share((step - 1) / settings.steps)",
        "plain_until_the_start",
        "tests/test_qat.py",
    ),
]
