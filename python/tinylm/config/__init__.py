"""The settings of a run as dataclasses, and the functions that read them.

    run = config.load("shakespeare", ["model=small", "train.steps=200"])

This package imports neither torch nor numpy, so `--help` and errors in settings appear at once.
"""

from tinylm.config.architectures import ARCHITECTURES, Role, choose
from tinylm.config.best import best
from tinylm.config.fields import Kind
from tinylm.config.help import describe
from tinylm.config.keys import ConfigError, flat, recipes, settings
from tinylm.config.loading import differences, find, general_recipe, load, to_yaml
from tinylm.config.lora import LoraConfig
from tinylm.config.model import ModelConfig
from tinylm.config.optim import OptimConfig
from tinylm.config.profile import ProfileConfig
from tinylm.config.sample import SampleConfig
from tinylm.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    Run,
    TokenizerConfig,
    TrackConfig,
)
from tinylm.config.train import TrainConfig

__all__ = [
    "ARCHITECTURES",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "Kind",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "ProfileConfig",
    "Role",
    "Run",
    "SampleConfig",
    "TokenizerConfig",
    "TrackConfig",
    "TrainConfig",
    "best",
    "choose",
    "describe",
    "differences",
    "find",
    "flat",
    "general_recipe",
    "load",
    "recipes",
    "settings",
    "to_yaml",
]
