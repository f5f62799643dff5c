"""The smallest whole model: one loss with the other media, it learns, and its command is kind."""

import random
import re
import signal
import subprocess
import sys
from functools import cache
from itertools import product

import numpy as np
import pytest

from tests.rungs.training import reference_step
from tests.test_one_loss import (
    FLOAT32,
    FLOAT64,
    MEDIA,
    STEPS,
    Problem,
    backward,
    built,
    distance,
    on_arrays,
    on_tensors,
)
from tinylm import model, optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.reference import optimizers, scalars, smallest

WORDS = ["to", "be", "or", "not"]


class EveryWord(random.Random):
    """Draws every text for a batch, so that all media see the same ones."""

    def choices(self, population, weights=None, *, cum_weights=None, k=1):
        return population


@cache
def the_smallest():
    """The smallest model as it starts, as a problem: words of unequal length are padded."""
    alphabet = "".join(sorted({*"".join(WORDS)}))
    texts = [[0, *(1 + alphabet.index(c) for c in word), 0] for word in WORDS]
    start = smallest.start(1 + len(alphabet), random.Random(0))
    weights = {name: as_arrays(weight).astype(np.float32) for name, weight in start.items()}
    longest = max(map(len, texts)) - 1
    tokens, targets = (
        np.array([text[cut] + [rest] * (longest + 1 - len(text)) for text in texts])
        for cut, rest in ((slice(None, -1), 0), (slice(1, None), -100))
    )
    config = ModelConfig(
        architecture="llama3",
        vocab_size=1 + len(alphabet),
        d_model=smallest.WIDTH,
        d_ff=smallest.INNER,
        n_layers=smallest.LAYERS,
        n_heads=smallest.HEADS,
        n_kv_heads=smallest.HEADS,
        context_length=longest,
    )
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    roles = {name: role for name, _, role in model.Model(config).named_roles()}
    return texts, Problem(config, weights, roles, tokens, targets)


def as_arrays(values):
    """The numbers in nested lists of `Value`."""
    return np.vectorize(lambda value: value.data, otypes=[float])(np.array(values, dtype=object))


def test_the_smallest_model_starts_with_the_weights_that_the_package_knows():
    _, given = the_smallest()
    built_in = {name: p.shape for name, p in model.Model(given.config).named_parameters()}
    assert {name: weight.shape for name, weight in given.weights.items()} == built_in


def test_the_smallest_model_has_the_loss_and_gradients_of_every_medium():
    texts, given = the_smallest()
    values = {name: scalars.wrap(weight.tolist()) for name, weight in given.weights.items()}
    loss = smallest.mean_loss(values, texts)
    smallest.backward(loss)
    slopes = {name: np.array(scalars.gradients(value)) for name, value in values.items()}
    for medium in MEDIA[:4]:
        fast_loss, gradients = medium.gradients(given, given.weights)
        assert loss.data == pytest.approx(fast_loss, rel=medium.tolerance), medium.name
        assert distance(slopes, gradients) <= medium.tolerance, medium.name


def test_the_smallest_model_trains_three_steps_like_every_medium():
    texts, given = the_smallest()
    values = {name: scalars.wrap(weight.tolist()) for name, weight in given.weights.items()}
    losses = list(smallest.train(values, texts, STEPS, EveryWord()))
    assert losses == sorted(losses, reverse=True)
    moved = {name: as_arrays(value) for name, value in values.items()}
    assert distance(given.weights, moved) > 0.01
    settings = OptimConfig(
        name="adamw",
        lr=smallest.RATE,
        weight_decay=0.0,
        clip=0.0,
        schedule="linear",
        warmup=0.0,
        min_lr=0.0,
    )
    for medium in (on_arrays, on_tensors):
        weights, states = given.weights, ({}, {})
        for step in range(STEPS):
            _, gradients = medium(given, weights)
            rate = optimizers.schedule(step, STEPS, course="linear")
            weights, states = reference_step(
                settings, given.roles, weights, gradients, states, rate
            )
        assert distance(moved, weights) <= FLOAT64
    module = built(given, given.weights)
    optimizer = optim.build(module, settings)
    for step in range(STEPS):
        backward(given, module)
        optimizer.step(optim.schedule(step, STEPS, settings))
    weights = {name: p.detach().numpy() for name, p in module.named_parameters()}
    assert distance(moved, weights) <= FLOAT32


# Consonants and vowels take turns: much to learn beyond how often each letter stands.
TURNS = ["".join(word) for word in product("bdg", "aei", "mnr", "ou")][::2]


def test_the_loss_on_words_held_out_falls_below_that_of_the_frequencies(capsys):
    smallest.learn(TURNS, steps=12)
    model_loss, frequencies = map(
        float, re.findall(r"(?:held out|alone): ([\d.]+)", capsys.readouterr().out)
    )
    assert model_loss < frequencies - 0.3


def test_a_seed_gives_the_same_words_and_another_seed_others(capsys):
    outputs = []
    for seed in (0, 0, 1):
        smallest.learn(WORDS, steps=2, seed=seed)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert "new words:" in outputs[0]


def start(*arguments, **options):
    """The command in a process of its own, with Ctrl-C as at a terminal."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('tinylm.reference.smallest', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


BAD = {
    "empty": (b"", ["empty", "0", "at least 2"]),
    "one word": (b"again again again\n", ["one word", "1", "at least 2"]),
    "only long words": (b"a" * 30 + b" " + b"b" * 30, ["only long words", "0", "at least 2"]),
    "latin-1": (b"caf\xe9 au lait", ["latin-1", "byte 3", "UTF-8"]),
    "missing": (None, ["missing: No such file"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_that_says_what_is_wrong(case, tmp_path):
    content, words = BAD[case]
    if content is not None:
        (tmp_path / case).write_bytes(content)
    run = start(tmp_path / case)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words)


def test_a_folder_and_a_second_file_are_refused(tmp_path):
    for arguments, word in (([tmp_path], str(tmp_path)), (["a", "b"], "one file")):
        run = start(*arguments)
        _, said = run.communicate(timeout=60)
        assert run.returncode > 0
        assert said.startswith("error: ")
        assert word in said


def test_long_words_are_counted_where_they_are_left_out(tmp_path, capsys):
    (tmp_path / "text").write_text("a b " + "c" * 25)
    assert smallest.read(str(tmp_path / "text")) == ["a", "b"]
    assert "1 words of over 24 characters are left out" in capsys.readouterr().out


def test_ctrl_c_leaves_with_one_word():
    run = start()
    assert "held out" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert (run.returncode, said) == (130, "interrupted\n")


def test_a_reader_that_leaves_ends_it_without_a_word(tmp_path):
    (tmp_path / "text").write_text("to be or not to be")
    with start(tmp_path / "text") as run:
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 0


def test_help_says_how_to_start_it():
    run = start("--help")
    said, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (0, "")
    assert "python -m tinylm.reference.smallest" in said


def test_it_needs_the_standard_library_alone():
    code = (
        f"import runpy, sys; before = set(sys.modules); runpy.run_path({smallest.__file__!r})\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(names - set(sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
