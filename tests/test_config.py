"""Settings: what loads, what is refused and how, and that a saved run reads back."""

import ast
import importlib
import math
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinylm import config
from tinylm.config import ConfigError, Run, fields, sections
from tinylm.config.keys import presets, takes_lists, takes_mapping, type_of
from tinylm.config.limits import Limits, in_words

PACKAGE = Path(config.__file__).parents[1]
KEYS = config.settings()
NUMBERS = {key: field.metadata["limits"] for key, field in KEYS.items() if field.metadata["limits"]}


def refusal(*overrides: str, file: Path | None = None) -> str:
    """The message of the `ConfigError` for these settings, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        config.load(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What loads.


def test_no_arguments_give_the_defaults():
    assert config.load().data == Run().data
    assert config.load().name == "stdlib"


def test_every_recipe_and_every_preset_loads():
    assert {"stdlib", "shakespeare"} <= set(config.recipes())
    for recipe in config.recipes():
        assert config.load(recipe).name == recipe
    for section in sections.SECTIONS:
        for preset in presets(section):
            config.load(overrides=[f"{section}={preset}"])


def test_later_overrides_win():
    assert config.load(overrides=["model=tiny", "model.d_model=256"]).model.d_model == 256
    assert config.load(overrides=["model.d_model=256", "model=tiny"]).model.d_model == 128
    assert config.load("shakespeare", ["train.steps=7"]).train.steps == 7


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "3.e-4"])
def test_a_number_in_scientific_notation_is_a_number(text, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"optim: {{lr: {text}}}")
    assert config.load(file).optim.lr == config.load(None, [f"optim.lr={text}"]).optim.lr == 3e-4


def test_a_text_stays_as_it_was_typed():
    pattern = r" ?\p{L}+=|[^\s]: #'\"\d{1,3}$"
    assert config.load(None, [f"tokenizer.pattern={pattern}"]).tokenizer.pattern == pattern
    assert config.load(None, ["data.source=1e3"]).data.source == "1e3"


@pytest.mark.parametrize(
    ("d_model", "feedforward", "width"),
    [(192, "swiglu", 512), (128, "swiglu", 352), (6, "swiglu", 16), (128, "mlp", 512)],
)
def test_the_default_width_of_the_feedforward_is_rounded_up(d_model, feedforward, width):
    sizes = {"d_model": d_model, "n_heads": 1, "feedforward": feedforward}
    assert config.ModelConfig(**sizes).feedforward_width == width
    assert config.ModelConfig(**sizes, d_ff=7).feedforward_width == 7


def test_a_run_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Run().train.steps = 3


def test_differences_name_the_keys_but_for_those_a_continuation_may_change():
    one = config.load()
    other = config.load(overrides=["train.steps=9", "train.resume=auto", "name=x", "optim.lr=1"])
    assert config.differences(one, other) == ["optim.lr"]


# What is refused.


@pytest.mark.parametrize("value", ["1" + "0" * 30, "1" * 5000, "0x" + "f" * 5000, "-1", "0", "1e3"])
def test_a_count_that_makes_no_sense_is_refused(value):
    message = refusal(f"train.steps={value}")
    assert message.startswith("train.steps=")
    assert len(message) < 200


def outside(limits: Limits) -> list[float]:
    """Numbers that the limits exclude: beyond each finite bound, and those that are no number."""
    low = limits["ge"] - 1 if "ge" in limits else limits["gt"]
    high = limits["le"] + 1 if "le" in limits else limits["lt"]
    return [n for n in (low, high) if math.isfinite(n)] + [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_outside_its_limits_is_refused_with_the_limits(key):
    for number in outside(NUMBERS[key]):
        message = refusal(f"{key}={[number, number] if key == 'optim.betas' else number}")
        assert message.startswith(f"{key}=")
        assert in_words(NUMBERS[key]) in message


@given(st.sampled_from(sorted(KEYS)), st.text(max_size=30))
def test_any_value_is_taken_or_refused_in_one_line(key, value):
    assume(key != "imports")
    message = None
    try:
        config.load(None, [f"{key}={value}"])
    except ConfigError as error:
        message = str(error)
    assert message is None or (key in message and len(message.splitlines()) == 1)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.device=gpu", "expected auto or cpu or cuda or mps"),
        ("optim.name=adam", "did you mean 'adamw'? allowed: muon, adamw, sgd"),
        ("model=smal", "did you mean 'small'? allowed: 100m, large, medium, small, tiny"),
        ("track.names=[console,tb]", "track.names=tb: allowed: console, jsonl, plot"),
        ("model.n_heads=7", "model.d_model=192: must be a multiple of n_heads=7"),
        ("model.n_kv_heads=2", "model.n_kv_heads=2: must divide n_heads=3"),
        ("train.micro_batch_size=3", "must divide batch_size=8"),
        ("optim.warmup=0.5", "optim.decay=0.6: with warmup=0.5 it passes the whole run"),
        ("tokenizer.special_tokens=[a,'']", "a special token must not be empty"),
        ("optim.betas=[0.9]", "expected a list of 2"),
        ("optim.lr=[[[", "optim.lr=[[[: expected a number"),
        ("optim.lr=" + "[" * 5000, "expected a number"),
        ("data.source=${oc.env:HOME}", "no '${' in it"),
        ("model.d_model=???", "is not '???'"),
        ("name=../x", "must be the name of a folder"),
        ("imports=[no_such_module]", "imports=no_such_module: No module named"),
        ("train.steps", "expected section.key=value"),
        ("train=fast", "no such preset"),
        ("optim.learning_rate=1", "optim has name, lr, matrix_lr"),
        ("zzz=1", "the sections are tokenizer, data, model"),
    ],
)
def test_a_refusal_says_what_would_do(override, expected):
    assert expected in refusal(override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {stesp: 3}", "unknown key 'train.stesp' ({file}): did you mean 'train.steps'?"),
        ("train: {steps: many}", "train.steps=many: expected a whole number"),
        ("train: {steps: 0}", "train.steps=0: must be at least 1 and below 2^31 ({file})"),
        ("optim: {warmup: 0.5}", "optim.decay=0.6: with warmup=0.5"),
        ("optim: {name: adam}", "did you mean 'adamw'? allowed: muon, adamw, sgd ({file})"),
        ("train: 3", "train=3: no such preset: set train.key=value instead ({file})"),
        ("model: smal", "model=smal: no such preset: did you mean 'small'?"),
        ("- 3", "{file}: expected sections with keys"),
        ("", "{file}: holds no setting"),
        ("# steps: 3\n", "{file}: holds no setting"),
        ("train: {steps: 3", "{file}: not a YAML file"),
        ("a: !!python/object/apply:os.system [ls]", "{file}: not a YAML file"),
        ("\x00", "{file}: not a YAML file"),
    ],
)
def test_a_refused_file_is_named(text, expected, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    message = refusal(file=file)
    assert expected.format(file=file) in message
    assert str(file) in message


def test_a_file_that_is_not_there_is_named_beside_the_recipes(tmp_path):
    assert f"{tmp_path / 'no.yaml'}: no such file" in refusal(file=tmp_path / "no.yaml")
    assert "did you mean 'shakespeare'?" in refusal(file=Path("shakespear"))


def test_a_refusal_leaves_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal("train.stesp=3", "out=there")
    refusal("train.steps=0", "out=there")
    assert list(tmp_path.iterdir()) == []


# Saved and read back.


def _values(key: str) -> st.SearchStrategy:
    """Legal values of one setting, by its type, its choices and its limits."""
    metadata, kind = KEYS[key].metadata, type_of(key)
    parts = [part for part in get_args(kind) or (kind,) if part is not type(None)]
    if metadata["choices"]:
        one = st.sampled_from(metadata["choices"])
    elif metadata["limits"]:
        one = _numbers(metadata["limits"], whole=int in parts or takes_lists(key))
    elif set(parts) & {str, int, float, bool}:
        text = st.text(min_size=1).filter(lambda text: "${" not in text and text != "???")
        known = {str: text, int: st.integers(-(2**40), 2**40), bool: st.booleans()}
        one = st.one_of(*(known[part] for part in parts if part in known))
    elif Ellipsis in parts:
        one = st.text(min_size=1)
    else:
        one = st.sampled_from(parts)
    if takes_mapping(key):
        return st.dictionaries(st.integers(0, 2**31), one, max_size=4) | st.none()
    if takes_lists(key):
        return st.lists(st.lists(one, min_size=1, max_size=3), max_size=3)
    if "tuple" in str(kind):
        fixed = len(parts) == 2 and Ellipsis not in parts
        return st.lists(one, min_size=2 * fixed, max_size=2 if fixed else 4).map(tuple)
    return one | st.none() if type(None) in get_args(kind) else one


def _numbers(limits: Limits, *, whole: bool) -> st.SearchStrategy:
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if whole:
        return st.integers(int(low), int(high) - ("lt" in limits))
    ends = {
        "min_value": low if math.isfinite(low) else None,
        "max_value": high if math.isfinite(high) else None,
        "exclude_min": "gt" in limits and math.isfinite(low),
        "exclude_max": "lt" in limits and math.isfinite(high),
    }
    return st.floats(**ends, allow_nan=False, allow_infinity=False)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run of legal settings: a few drawn, the others their defaults."""
    drawn = draw(
        st.lists(
            st.sampled_from(sorted(set(KEYS) - {"imports", "train.device"})),
            max_size=8,
            unique=True,
        )
    )
    made: dict[str, dict] = {}
    for key in drawn:
        section, _, name = key.rpartition(".")
        made.setdefault(section, {})[name] = draw(_values(key), label=key)
    top = made.pop("", {})
    if top.get("name") is None or not sections.is_folder_name(top["name"]):
        top["name"] = "a-run"
    try:
        return Run(**top, **{name: sections.SECTIONS[name](**made[name]) for name in made})
    except ValueError as error:
        # Two settings that do not go together, such as heads that do not divide the width: a
        # refusal names the key first. That each value alone is taken, other tests check.
        assume(not re.match(r"\w+(\.\w+)?[=:]", str(error)))
        raise


# Drawing a whole run takes a tenth of a second.
@settings(max_examples=15)
@given(runs())
def test_a_saved_run_reads_back_equal(tmp_path_factory, run):
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(config.to_yaml(run), encoding="utf-8")
    assert config.load(file) == run


# The names of what is built.


@pytest.mark.parametrize(
    ("literal", "module", "registry"),
    [
        (fields.Norm, "layers", "NORMS"),
        (fields.Position, "layers", "POSITIONS"),
        (fields.FeedForward, "layers", "FEEDFORWARDS"),
        (fields.Attention, "layers", "ATTENTIONS"),
        (fields.Architecture, "config", "ARCHITECTURES"),
        (fields.Optimizer, "optim", "OPTIMIZERS"),
        (fields.Schedule, "optim", "SCHEDULES"),
        (fields.Tracker, "track", "TRACKERS"),
        (fields.CacheKind, "cache", "KINDS"),
    ],
)
def test_the_names_that_help_lists_are_the_registry(literal, module, registry):
    built = getattr(importlib.import_module(f"tinylm.{module}"), registry)
    assert set(get_args(literal)) == set(built)


def test_only_names_that_an_imported_module_adds_are_taken(tmp_path, monkeypatch):
    (tmp_path / "my_norms_for_a_test.py").write_text(
        "from tinylm.layers import NORMS\nNORMS['mine'] = NORMS['rmsnorm']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = "imports=[my_norms_for_a_test]"
    try:
        run = config.load(None, [given, "model.norm=mine"])
        assert run.model.norm == "mine"
        assert "did you mean 'mine'? allowed: layernorm, mine" in refusal(given, "model.norm=min")
        for slip in ("optim.name=adam", "track.names=[consol]", "model.architecture=llama"):
            assert "did you mean" in refusal(given, slip)
    finally:
        importlib.import_module("tinylm.layers").NORMS.pop("mine", None)
    assert "allowed: rmsnorm, layernorm" in refusal("model.norm=mine")


# Help.


def test_help_has_every_key_with_its_default_and_what_it_takes():
    text = config.describe()
    for key, field in KEYS.items():
        assert f"  {key}=" in text
        assert " ".join(field.metadata["help"].split())[:40] in " ".join(text.split())
    assert "model  (presets: model=100m|large|medium|small|tiny)" in text
    assert "optim.betas=[0.9,0.95]" in text
    assert "data.mask_after_eos=false" in text


def test_help_of_one_section_has_no_other():
    text = config.describe(["sample"])
    assert "sample.top_k=null" in text
    assert "train.steps" not in text


def test_every_setting_is_read_somewhere():
    if not (PACKAGE / "train").exists():
        pytest.skip("the trainer is not there")
    read = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # A setting that is only checked does nothing.
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                node.body = []
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert [key for key in KEYS if key.rpartition(".")[2] not in read] == []


def test_an_empty_source_is_refused():
    with pytest.raises(ConfigError, match=r"data\.source='': name a text, a folder or a dataset"):
        config.load(overrides=["data.source="])


OFF = {
    key: field.metadata["off"]
    for key, field in KEYS.items()
    if field.metadata.get("off") is not None
}


@pytest.mark.parametrize("key", OFF)
def test_null_turns_off_what_a_number_turns_off(key, tmp_path):
    section, _, name = key.rpartition(".")
    run = config.load(None, [f"{key}=null"])
    assert getattr(getattr(run, section), name) == OFF[key]
    (tmp_path / "mine.yaml").write_text(f"{section}: {{{name}: null}}")
    assert config.load(tmp_path / "mine.yaml").optim == config.load(None, [f"{key}=null"]).optim
    assert getattr(sections.SECTIONS[section](**{name: None}), name) == OFF[key]


def test_null_is_refused_where_nothing_can_be_off():
    assert {"optim.clip", "checkpoint.every", "model.dropout"} <= OFF.keys()
    for key in ("optim.lr", "train.steps", "sample.temperature"):
        assert refusal(f"{key}=null").startswith(f"{key}=null: expected")


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ([], "stdlib"),
        (["data.source=a.txt", "train.steps=5", "out=x"], "stdlib"),
        (["model=small"], None),
        (["train.steps=5", "model.n_layers=2"], None),
        (["optim=adamw"], None),
        (["train.init=runs/base"], None),
    ],
)
def test_a_command_without_a_recipe_takes_the_one_of_the_default_run(given, recipe):
    assert config.general_recipe(given) == recipe


def test_a_run_of_the_general_recipe_is_named_after_its_text():
    assert config.load("stdlib").name == "stdlib"
    assert config.load("stdlib", ["data.source=books/a.txt"]).name == "a"
    assert config.load("shakespeare", ["data.source=books/a.txt"]).name == "shakespeare"
