"""Sampling: the steps against plain definitions, the texts against reading everything anew."""

import dataclasses
import itertools
import math
import subprocess
import sys
import types

import numpy as np
import pytest
import tinylm
import torch
from fakes import ByteTokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import build
from tinylm import sample
from tinylm.config import ConfigError, ModelConfig, SampleConfig
from tinylm.sample import decoding, logits
from tinylm.sample.__main__ import main

SMALL = ModelConfig(
    vocab_size=257, d_model=12, n_layers=2, n_heads=2, context_length=16, tied=False
)
# Halves make ties likely.
ROW = st.lists(st.integers(-12, 12).map(lambda n: n / 2), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def small():
    return build(SMALL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


def tensor(row):
    return torch.tensor([row], dtype=torch.float64)


def kept(row):
    """The ids that can still be drawn."""
    return {i for i, value in enumerate(row[0].tolist()) if value > -math.inf}


def softmax(row):
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def likeliest_first(row):
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@given(row=ROW, seen=st.sets(st.integers(0, 11)), penalty=st.floats(0.1, 10))
def test_repetition_penalty_divides_positive_and_multiplies_negative_logits(row, seen, penalty):
    marks = torch.tensor([[i in seen for i in range(len(row))]])
    wanted = [
        (x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(row)
    ]
    got = logits.repetition_penalty(tensor(row), marks, penalty)
    assert got[0].tolist() == pytest.approx(wanted)
    if penalty > 1:
        assert (got <= tensor(row)).all()


@given(row=ROW, data=st.data(), penalty=st.floats(-2, 2))
def test_frequency_counts_every_time_and_presence_once(row, data, penalty):
    counts = data.draw(st.lists(st.integers(0, 4), min_size=len(row), max_size=len(row)))
    per_time = [x - penalty * n for x, n in zip(row, counts, strict=True)]
    once = [x - penalty * min(n, 1) for x, n in zip(row, counts, strict=True)]
    got = logits.frequency_penalty(tensor(row), tensor(counts), penalty)
    assert got[0].tolist() == pytest.approx(per_time)
    got = logits.presence_penalty(tensor(row), tensor(counts), penalty)
    assert got[0].tolist() == pytest.approx(once)


@given(row=ROW, value=st.floats(0.05, 20))
def test_temperature_divides_the_logits(row, value):
    wanted = softmax([x / value for x in row])
    got = logits.temperature(tensor(row), value).softmax(-1)
    assert got[0].tolist() == pytest.approx(wanted)


@given(row=ROW, value=st.sampled_from([5e-324, 1e-100, 1e-8]))
def test_a_tiny_temperature_draws_among_the_likeliest(row, value):
    cold = logits.temperature(tensor(row), value)
    token = int(logits.draw(cold, torch.tensor([0.5], dtype=torch.float64)))
    assert row[token] == max(row)


@given(row=ROW, k=st.integers(1, 15))
def test_top_k_keeps_exactly_the_k_likeliest(row, k):
    assert kept(logits.top_k(tensor(row), k)) == set(likeliest_first(row)[:k])


@given(row=ROW, p=st.floats(0.001, 1))
def test_top_p_keeps_the_token_that_crosses_p(row, p):
    probabilities, wanted, reached = softmax(row), set(), 0.0
    for token in likeliest_first(row):
        # Where the sum is p but for rounding, either answer is right.
        assume(abs(reached - p) > 1e-9)
        if reached < p:
            wanted.add(token)
        reached += probabilities[token]
    assert kept(logits.top_p(tensor(row), p)) == wanted


def test_top_p_of_one_keeps_every_token():
    row = [0.0, *[-30.0] * 50]
    assert kept(logits.top_p(tensor(row), 1.0)) == set(range(51))


def test_top_p_stops_where_the_sum_is_p():
    assert kept(logits.top_p(tensor([0.0, 0.0]), 0.5)) == {0}
    assert kept(logits.top_p(tensor([0.0, 0.0]), 0.51)) == {0, 1}
    assert kept(logits.top_p(tensor([0.0, 0.0]), 1e-12)) == {0}


@given(row=ROW, share=st.floats(0.001, 1))
def test_min_p_keeps_what_is_likely_enough(row, share):
    probabilities = softmax(row)
    floor = share * max(probabilities)
    assume(all(abs(p / floor - 1) > 1e-9 or p == max(probabilities) for p in probabilities))
    wanted = {i for i, p in enumerate(probabilities) if p >= floor or p == max(probabilities)}
    assert kept(logits.min_p(tensor(row), share)) == wanted


@given(row=ROW, u=st.floats(0, 1, exclude_max=True))
def test_a_token_is_drawn_by_the_inverse_of_the_distribution(row, u):
    bounds = list(itertools.accumulate(softmax(row)))
    assume(all(abs(bound - u) > 1e-9 for bound in bounds[:-1]))
    wanted = next((i for i, bound in enumerate(bounds) if bound > u), len(row) - 1)
    assert int(logits.draw(tensor(row), torch.tensor([u], dtype=torch.float64))) == wanted


@given(row=ROW, allowed=st.sets(st.integers(0, 11), min_size=1), data=st.data())
def test_a_token_of_no_probability_is_never_drawn(row, allowed, data):
    assume(any(i < len(row) for i in allowed))
    masked = [x if i in allowed else -math.inf for i, x in enumerate(row)]
    ends = st.sampled_from([0.0, 0.5, 1 - 2**-53])
    u = data.draw(ends | st.floats(0, 1, exclude_max=True))
    token = int(logits.draw(tensor(masked), torch.tensor([u], dtype=torch.float64)))
    assert token in allowed


@given(row=ROW)
def test_greedy_takes_the_smallest_of_the_likeliest_ids(row):
    assert int(logits.greedy(tensor(row))) == likeliest_first(row)[0]


def test_the_steps_come_in_the_order_of_transformers():
    # Only after the temperature does min_p keep the second token, only after top_k top_p the
    # first two, only after the penalty is the last one out.
    row, marks = tensor([2.0, 1.0, 0.9, 3.0]), torch.tensor([[False, False, False, True]])
    counts = tensor([0.0, 0.0, 0.0, 2.0])
    config = SampleConfig(
        repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=0.5,
        temperature=2.0, top_k=3, top_p=0.7, min_p=0.5,
    )  # fmt: skip
    got = logits.process(row, marks, counts, config)
    assert kept(got) == {0, 1}
    assert got[0, 1] - got[0, 0] == pytest.approx(-0.5)
    greedy = dataclasses.replace(config, temperature=0.0, top_k=1)
    wanted = [2.0, 1.0, 0.9, 3 / 2 - 2 - 0.5]
    assert logits.process(row, marks, counts, greedy)[0].tolist() == pytest.approx(wanted)


def test_the_filters_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    row = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[1, 2, 2], [3, 4, 5], [6, 6, 6], [7, 8, 9]])
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, ids, True)
    config = SampleConfig(repetition_penalty=1.3, temperature=0.7, top_k=30, top_p=0.8, min_p=0.05)
    wanted = row
    for warper in (
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(30),
        transformers.TopPLogitsWarper(0.8),
        transformers.MinPLogitsWarper(0.05),
    ):
        wanted = warper(ids, wanted)
    got = logits.process(row, seen, torch.zeros_like(row), config)
    torch.testing.assert_close(got.softmax(-1), wanted.softmax(-1))


@given(
    seed=st.integers(0, 2**63 - 1), prompt=st.integers(0, 2**40), index=st.integers(0, 2**40),
    step=st.integers(0, 40),
)  # fmt: skip
def test_a_random_number_is_a_function_of_its_place(seed, prompt, index, step):
    key = np.array([seed, logits.STREAM], dtype=np.uint64)
    counter = np.array([0, 0, index, prompt], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).advance(step // 4)
    wanted = np.random.Generator(bits).random(4)[step % 4]
    assert next(itertools.islice(logits.uniforms(seed, prompt, index), step, None)) == wanted


def test_the_random_numbers_are_uniform_and_of_their_own_in_every_row():
    rows = [
        list(itertools.islice(logits.uniforms(seed, prompt, index), 2000))
        for seed, prompt, index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for row in rows:
        counts, _ = np.histogram(row, 20, (0, 1))
        # 19 degrees of freedom: above 50 once in ten thousand.
        assert ((counts - 100) ** 2 / 100).sum() < 50
    assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 0.1


def test_drawn_tokens_follow_the_distribution():
    row = [0.3, -1.0, 0.0, 2.0, -math.inf]
    numbers = torch.tensor(list(itertools.islice(logits.uniforms(0, 0, 0), 20000)))
    ids = logits.draw(tensor(row).expand(20000, -1), numbers.double())
    shares = torch.bincount(ids, minlength=5) / 20000
    assert shares.tolist() == pytest.approx(softmax(row), abs=0.015)


@pytest.mark.parametrize("context", [1, 2, 3, 7, 8])
def test_a_full_window_keeps_its_newer_half_and_grows_again(context):
    half, seen = max(1, context // 2), 0
    for length in range(1, 5 * context):
        seen = seen + 1 if seen < context else half
        assert decoding.visible(length, context) == seen


def slow(model, prompt, config, number=0, index=0):
    """Tokens one by one, the whole visible text read anew for each."""
    text, numbers = list(prompt), logits.uniforms(config.seed, number, index)
    for _ in range(config.max_tokens):
        window = text[-decoding.visible(len(text), model.config.context_length) :]
        with torch.no_grad():
            row = model(torch.tensor([window]))[:, -1].double()
        counts = torch.bincount(
            torch.tensor(text[len(prompt) :], dtype=torch.int64), minlength=row.size(1)
        )[None]
        seen = torch.bincount(torch.tensor(text), minlength=row.size(1))[None] > 0
        row = logits.process(row, seen, counts, config)
        u = torch.tensor([next(numbers)], dtype=torch.float64)
        token = int(logits.greedy(row) if config.temperature == 0 else logits.draw(row, u))
        if token in config.stop:
            break
        text.append(token)
    return text[len(prompt) :]


CONFIGS = [
    SampleConfig(temperature=0.0, max_tokens=40),
    SampleConfig(temperature=1.0, max_tokens=40, seed=7),
    SampleConfig(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, max_tokens=20),
    SampleConfig(
        temperature=1.0, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2,
        max_tokens=40,
    ),
    SampleConfig(temperature=1.5, max_tokens=60, stop=tuple(range(0, 257, 5))),
]  # fmt: skip
PROMPTS = [[1, 2, 3], [4], list(range(16)), [7, 8, 9], list(range(30)), [1, 2, 3]]


@pytest.mark.parametrize("config", CONFIGS)
def test_generate_equals_reading_everything_anew(small, config):
    config = dataclasses.replace(config, samples=3)
    wanted = [slow(small, p, config, n, i) for n, p in enumerate(PROMPTS) for i in range(3)]
    assert sample.generate(small, PROMPTS, config) == wanted


def test_every_part_of_a_model_can_be_sampled_from():
    for position, context in itertools.product(["rope", "learned", "none"], [1, 2, 5]):
        mixed = dataclasses.replace(SMALL, position=position, context_length=context, vocab_size=9)
        model = build(mixed, dtype=torch.float32)
        config = SampleConfig(max_tokens=12)
        assert sample.generate(model, [[1, 2]], config) == [slow(model, [1, 2], config)]


def test_a_text_does_not_depend_on_its_company(small):
    config = SampleConfig(temperature=1.0, max_tokens=20, samples=2, stop=(3, 5, 8, 13, 21))
    together = sample.generate(small, PROMPTS, config)
    more = sample.generate(small, PROMPTS[:3], dataclasses.replace(config, samples=5))
    assert [more[5 * n + i] for n in range(3) for i in range(2)] == together[:6]
    assert sample.generate(small, PROMPTS[:1], config) == together[:2]


def test_the_number_of_rows_decoded_together_does_not_show(small, monkeypatch):
    config = SampleConfig(temperature=1.0, max_tokens=10, samples=3)
    wanted = sample.generate(small, PROMPTS, config)
    monkeypatch.setattr(decoding, "ROWS", 2)
    monkeypatch.setattr(decoding, "LOGITS", 3 * 257)
    assert sample.generate(small, PROMPTS, config) == wanted


def test_equal_prompts_and_samples_differ_and_another_seed_too(small):
    config = SampleConfig(temperature=1.0, max_tokens=20, samples=2)
    texts = sample.generate(small, [[1], [1]], config)
    texts += sample.generate(small, [[1]], dataclasses.replace(config, seed=1))
    assert len({tuple(text) for text in texts}) == 6


def test_a_longer_text_begins_with_the_shorter(small):
    short, long = (SampleConfig(temperature=1.0, max_tokens=n) for n in (10, 50))
    assert sample.generate(small, [[1]], long)[0][:10] == sample.generate(small, [[1]], short)[0]


def test_a_prompt_is_read_once_for_all_its_samples(small):
    read = []
    hook = small.embedding.register_forward_hook(lambda module, args, out: read.append(args[0]))
    sample.generate(small, [[1, 2, 3], [4, 5, 6]], SampleConfig(samples=4, max_tokens=3))
    hook.remove()
    # No pass for the last token: nobody asks what follows it.
    assert [tuple(ids.shape) for ids in read] == [(2, 3), (8, 1), (8, 1)]


def test_generating_leaves_the_model_as_it_was(small):
    small.train()
    state = torch.get_rng_state()
    sample.generate(small, [[1]], SampleConfig(max_tokens=2))
    assert small.training
    assert torch.equal(torch.get_rng_state(), state)
    small.eval()
    sample.generate(small, [[1]], SampleConfig(max_tokens=2))
    assert not small.training


def test_dropout_is_off_while_sampling():
    model = build(dataclasses.replace(SMALL, dropout=0.5), dtype=torch.float32).train()
    config = SampleConfig(temperature=0.0, max_tokens=20)
    one, two = (sample.generate(model, [[1]], config) for _ in range(2))
    assert one == two


def test_weights_in_bfloat16_can_be_sampled_from():
    model = build(SMALL, dtype=torch.bfloat16)
    (text,) = sample.generate(model, [[1]], SampleConfig(max_tokens=30))
    assert len(text) == 30


@pytest.mark.parametrize(
    ("prompts", "config", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [2, 257]], {}, "prompt 1 has id 257: the vocabulary is 0 to 256"),
        ([[-1]], {}, "prompt 0 has id -1"),
        ([[1]], {"stop": (300,)}, "stop has id 300"),
        ([[1]], {"stop": (3, "end")}, r"stop='end' is a text .* use stream\(\)"),
    ],
)
def test_bad_input_is_named(small, prompts, config, message):
    with pytest.raises(ValueError, match=message):
        sample.generate(small, prompts, SampleConfig(**config))


def test_weights_that_are_not_finite_are_an_error():
    model = build(SMALL)
    model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="its weights are not finite"):
        sample.generate(model, [[1]], SampleConfig())


def test_no_prompts_give_no_texts(small):
    assert sample.generate(small, [], SampleConfig()) == []


def test_stream_is_the_text_of_generate(small, tokenizer):
    config = SampleConfig(temperature=1.0, max_tokens=60, samples=3, stop=(7, 70))
    stop = dataclasses.replace(config, stop=(7, 70, 256))
    texts = sample.generate(small, [list(b"ab")], stop)
    for index in range(3):
        pieces = sample.stream(small, tokenizer, "ab", config, sample=index)
        assert "".join(pieces) == bytes(texts[index]).decode(errors="replace")


def test_an_empty_prompt_starts_from_the_end_of_a_text(small, tokenizer):
    config = SampleConfig(max_tokens=10, seed=3)
    (ids,) = sample.generate(small, [[256]], dataclasses.replace(config, stop=(256,)))
    assert "".join(sample.stream(small, tokenizer, "", config)) == bytes(ids).decode(
        errors="replace"
    )
    tokenizer = ByteTokenizer()
    tokenizer.eos_id = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        sample.stream(small, tokenizer, "", config)


def test_what_stream_cannot_do_is_said_at_once(small, tokenizer):
    with pytest.raises(ValueError, match="special token"):
        sample.stream(small, tokenizer, "a<|endoftext|>", SampleConfig())
    with pytest.raises(ValueError, match=r"sample=1: config\.samples=1"):
        sample.stream(small, tokenizer, "a", SampleConfig(), sample=1)
    with pytest.raises(ValueError, match="stop='': a stop text has at least one character"):
        sample.stream(small, tokenizer, "a", SampleConfig(stop=("",)))


def test_rows_of_the_embedding_beyond_the_tokenizer_are_never_drawn(tokenizer):
    model = build(dataclasses.replace(SMALL, vocab_size=300), dtype=torch.float32)
    hot = SampleConfig(temperature=50.0, max_tokens=200, seed=2)
    assert all(token < 257 for token in decoding.stream_ids(model, tokenizer, "a", hot))


def test_the_consumer_of_a_stream_keeps_its_own_modes(small, tokenizer):
    small.train()
    for _ in sample.stream(small, tokenizer, "a", SampleConfig(max_tokens=3, stop=())):
        assert small.training
        assert not torch.is_inference_mode_enabled()


def written(text, stops):
    config = SampleConfig(stop=tuple(stops))
    return list(decoding.write(ByteTokenizer(), iter(text.encode()), config))


def first_stop(text, stops):
    """Where the text ends, found by reading letter by letter."""
    for end in range(1, len(text) + 1):
        cuts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if cuts:
            return text[: min(cuts)]
    return text


@settings(max_examples=300)
@given(
    text=st.text("ab\u00e4\u20ac", max_size=20),
    stops=st.lists(st.text("ab\u00e4\u20ac", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 6), min_size=1),
)
def test_a_text_ends_before_its_first_stop_however_it_is_cut(text, stops, sizes):
    wanted = first_stop(text, stops)
    pieces = written(text, stops)
    assert "".join(pieces) == wanted
    assert all(pieces)
    # The same in pieces of any size: a token may hold a stop and more.
    out, waiting, ended, start = "", "", False, 0
    for size in itertools.cycle(sizes):
        if ended or start >= len(text):
            break
        done, waiting, ended = decoding.cut(waiting + text[start : start + size], stops)
        out, start = out + done, start + size
    assert out + waiting == wanted


def test_only_what_may_begin_a_stop_waits():
    assert written("abcabd", ["abd"]) == ["abc"]
    assert written("xaby", ["abc"]) == ["x", "aby"]
    assert written("aab", ["ab"]) == ["a"]
    assert written("xab", ["abc"]) == ["x", "ab"]


def test_no_piece_splits_a_character():
    text = "h\u00e9 \u20ac \U0001f600"
    assert written(text, []) == list(text)
    config = SampleConfig()
    broken = list(decoding.write(ByteTokenizer(), iter(text.encode()[:-1]), config))
    assert broken == [*text[:-1], "\ufffd"]


@pytest.fixture
def run(small, tokenizer, monkeypatch, tmp_path):
    """A folder that `checkpoint.load` takes for a run."""

    def load(path, *, device="cpu", dtype=None):
        return small.to(device), tokenizer

    fake = types.SimpleNamespace(load=load)
    monkeypatch.setitem(sys.modules, "tinylm.checkpoint", fake)
    monkeypatch.setattr(tinylm, "checkpoint", fake, raising=False)
    (tmp_path / "config.yaml").write_text(
        "sample: {temperature: 0, max_tokens: 12}\ntrain: {device: cpu}\n"
    )
    return tmp_path


def test_the_command_prints_the_prompt_and_what_follows(run, small, tokenizer, capsys):
    assert main([str(run), "ab"]) == 0
    config = SampleConfig(temperature=0, max_tokens=12)
    wanted = "ab" + "".join(sample.stream(small, tokenizer, "ab", config)) + "\n"
    captured = capsys.readouterr()
    assert captured.out == wanted
    assert captured.err == ""


def test_the_command_takes_settings_with_and_without_their_section(run, capsys):
    main([str(run), "ab", "max_tokens=1", "sample.samples=2", "temperature=1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    assert [line.strip("- ") for line in lines] == ["sample 1 of 2", "sample 2 of 2"]


def test_a_checkpoint_has_the_settings_of_its_run(run, capsys):
    folder = run / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    main([str(run), "ab"])
    wanted = capsys.readouterr().out
    main([str(folder), "ab"])
    assert capsys.readouterr().out == wanted


def test_a_prompt_may_look_like_a_setting_after_two_dashes(run, capsys):
    main([str(run), "max_tokens=1", "--", "x=--help"])
    assert capsys.readouterr().out.startswith("x=--help")


def test_a_prompt_comes_from_standard_input(run, capsys, monkeypatch):
    stdin = types.SimpleNamespace(isatty=lambda: False, read=lambda: "from here\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    main([str(run), "max_tokens=1"])
    assert capsys.readouterr().out.startswith("from here")


def test_the_speed_is_told_to_a_terminal_alone(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main([str(run), "ab", "max_tokens=3"])
    assert "tokens/s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["temprature=0"], "unknown key 'sample.temprature': did you mean 'sample.temperature'"),
        (["temperature=cold"], "sample.temperature=cold: expected a number"),
        (["top_p=2"], r"sample.top_p=2.0: must lie in \(0, 1\]"),
        (["train.steps=3"], "train.steps: only the settings of sample apply"),
        (["--top-p", "0.5"], "unknown option --top-p: settings are key=value"),
        (["one", "two"], "2 prompts: put quotes around"),
    ],
)
def test_a_bad_argument_is_one_line(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        main([str(run), *arguments])


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run, checkpoint or model folder"):
        main([str(tmp_path / "none"), "ab"])
    with pytest.raises(ConfigError, match="which run"):
        main([])


def test_help_needs_no_torch():
    code = (
        "import sys; from tinylm.sample.__main__ import main; main(['--help']);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for field in dataclasses.fields(SampleConfig):
        assert f"sample.{field.name}=" in done.stdout


def test_the_command_leaves_with_its_exit_code(tmp_path):
    def code(*arguments):
        command = [sys.executable, "-m", "tinylm.sample", *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    missing = code(str(tmp_path / "none"))
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    assert code(str(tmp_path), "tmperature=1").returncode == 2
