"""Model, tokenizer and training state to disk and back, whole or not at all.

    checkpoint.save("runs/a/checkpoints/step-00000100", model, tokenizer, training=training)
    model, tokenizer = checkpoint.load("runs/a")

A save that is cut short at any instant, by kill -9, a full disk or a loss of power, leaves the
previous checkpoint as it was. A byte that changed later is found when the checkpoint is
read. transformers opens the folders of gpt2, llama3 and qwen3 models, and `load` opens its folders.
"""

from tinylm.checkpoint.background import Writer
from tinylm.checkpoint.files import verify
from tinylm.checkpoint.folder import (
    Content,
    Training,
    content,
    load,
    load_training,
    save,
    write,
)
from tinylm.checkpoint.steps import latest, path_of, purge, step_of

__all__ = [
    "Content",
    "Training",
    "Writer",
    "content",
    "latest",
    "load",
    "load_training",
    "path_of",
    "purge",
    "save",
    "step_of",
    "verify",
    "write",
]
