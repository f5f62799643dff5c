"""Settings that would do nothing: refused where they were given, and only there."""

import pytest

from tests.support.models import build
from tinylm import config
from tinylm.config import ConfigError, ModelConfig, OptimConfig, idle
from tinylm.layers.freezing import freeze
from tinylm.train import finetuning

LORA = ("lora.rank=4", "train.init=runs/base")
H2O = ["sample.cache=h2o", "sample.cache_tokens=9"]
WINDOW = ["sample.cache=window", "sample.cache_tokens=9"]
GIVEN = [
    (["optim.name=adamw", "optim.matrix_lr=0.02"], "optim.matrix_lr=0.02: is Muon's and has no"),
    (["optim.momentum=0.9@0 0.95@1", "optim.name=sgd"], "optim.momentum=0.9@0 0.95@1: is Muon's"),
    (["optim=adamw", "optim.orthogonal=newton_schulz"], "with optim.name=adamw: leave it out"),
    (["optim.name=sgd", "optim.orthogonal_steps=3"], "set optim.name=muon"),
    ([*LORA, "optim.matrix_lr=0.1"], "has no effect with lora.rank=4, because AdamW moves"),
    ([*LORA, "optim.weight_decay=0.2"], "optim.weight_decay=0.2: has no effect with lora.rank=4"),
    (["optim.name=sgd", "optim.eps=1e-6"], "optim.eps=1e-6: has no effect with optim.name=sgd"),
    (["optim.scalar_lr=0.1"], "optim.scalar_lr=0.1: has no effect on a model without scalars"),
    (["optim.schedule=cosine", "optim.decay=0.3"], "has no effect with optim.schedule=cosine"),
    (["optim.schedule=constant", "optim.min_lr=0.1"], "has no effect with optim.schedule=constant"),
    (["evaluate.every=0", "evaluate.patience=3"], "has no effect with evaluate.every=0"),
    (
        ["sample.cache_tokens=9"],
        "with sample.cache=contiguous, which keeps all tokens: leave it out",
    ),
    (["sample.cache=h2o"], "sample.cache=h2o: keeps a number of tokens: set sample.cache_tokens"),
    (["sample.cache=window", "sample.cache_tokens=4"], "sample.cache_tokens=4: must be above 4"),
    ([*H2O, "sample.draft=lookup"], "sample.cache=h2o cannot: take another cache"),
    (
        [*WINDOW, "sample.draft=lookup", "sample.draft_tokens=33"],
        "draft_tokens=33: must be at most",
    ),
    (["sample.draft_tokens=3"], "sample.draft_tokens=3: has no effect without a draft"),
    *(
        ([f"sample.{given}", "sample.num_beams=4"], "with sample.num_beams=4, which looks for")
        for given in (
            *("temperature=1", "top_k=5", "top_p=0.5", "min_p=0.5", "typical_p=0.5", "seed=1"),
            "draft_tokens=3",
        )
    ),
    (["sample.draft=lookup", "sample.num_beams=4"], "draft=lookup: has no use for num_beams=4"),
    (["sample.exit_layer=2"], "sample.exit_layer=2: has no effect without a confidence"),
    (
        ["sample.exit_confidence=0.9", "sample.num_beams=4"],
        "exit_confidence=0.9: has no use for num_beams=4",
    ),
    (["sample.length_penalty=2"], "sample.length_penalty=2: compares beams and has no effect with"),
    (["sample.heal=true", "sample.regex=a"], "where tokens are restricted by sample.regex: leave"),
    (["data.sources=[a:1]", "data.source=b"], "data.source=b: has no effect with data.sources"),
    (["data.sources=[a:1]", "data.folder=b"], "whose texts have a folder of shards each: leave"),
    (["data.pack=true", "data.stride=9"], "data.stride=9: has no effect with data.pack=true"),
    (["data.pack=true", "data.document_mask=true"], "which always keeps documents apart: leave"),
    (["data.pack=true", "data.mask_after_eos=true"], "whose pieces end with their document: leave"),
    (["data.pack=true", "data.order=random"], "data.order=random: draws windows of tokens, and"),
    (["data.mask_eos=true", "data.mask_after_eos=true"], "data.mask_eos=True: leaves out the ends"),
    (["train.qat_start=0.5"], "qat_start=0.5: has no effect with train.qat=none: leave it out"),
    (["train.qat_keep=[x]", "train.qat=int8"], "has no effect with train.qat=int8, which all"),
    (["train.qat_ramp=0.1"], "train.qat_ramp=0.1: has no effect with train.qat=none"),
    (["train.qat=int8", "train.qat_group=64"], "has no effect with train.qat=int8, whose scales"),
    (["profile.start=3"], "profile.start=3: has no effect with profile.steps=0: set profile.steps"),
]


@pytest.mark.parametrize(("given", "problem"), GIVEN)
def test_a_setting_that_would_do_nothing_is_refused_by_name(given, problem):
    with pytest.raises(ConfigError) as caught:
        config.load(None, given)
    assert problem in str(caught.value)


def test_every_rule_has_its_example():
    tried = {word.partition("=")[0] for given, _ in GIVEN for word in given}
    assert {rule.key for rule in idle.RULES} <= tried


def test_a_setting_that_works_or_that_asks_for_nothing_is_taken():
    for given in (
        ["optim.matrix_lr=0.1"],
        ["optim.name=adamw", "optim.orthogonal_steps=null"],
        ["model.shortcut=true", "optim.scalar_lr=0.1"],
        ["train.init=runs/base", "optim.scalar_lr=0.1"],
        ["profile.start=null"],
        ["profile.start=0"],
        [*LORA, "optim.weight_decay=0"],
        ["optim.schedule=cosine", "optim.decay=0"],
        ["profile.start=3", "profile.steps=2"],
        ["sample.draft=lookup", "sample.draft_tokens=3"],
    ):
        config.load(None, given)


def test_a_recipe_stays_of_use_with_another_optimizer_and_a_saved_run_reads_back(tmp_path):
    for name, other in (("speedrun", "optim=adamw"), ("nanogpt-cpu", "optim.name=sgd")):
        run = config.load(name, [other, "model.shortcut=false", "model.value_residual=false"])
        (file := tmp_path / "config.yaml").write_text(config.to_yaml(run))
        assert config.load(file, ["train.steps=7"]).optim == run.optim
    file.write_text("optim: {matrix_lr: 0.1}\nevaluate: {patience: 3}\n")
    config.load(file, ["optim.name=adamw", "evaluate.every=0"])
    file.write_text("optim: {name: adamw, matrix_lr: 0.1}\n")
    with pytest.raises(ConfigError, match=r"optim.matrix_lr=0.1: is Muon's .*\(.*config.yaml\)"):
        config.load(file)


def test_a_rate_whose_role_is_not_trained_is_named():
    net = build(ModelConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2, context_length=8))
    settings = OptimConfig(embedding_lr=0.1, scalar_lr=0.25)
    assert finetuning.idle_rates(net, settings) == [
        "warning: optim.scalar_lr=0.25 has no effect: no scalar is trained"
    ]
    freeze(net, ["embedding"])
    assert "optim.embedding_lr=0.1" in finetuning.idle_rates(net, settings)[0]
