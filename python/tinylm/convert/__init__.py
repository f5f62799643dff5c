"""Our names to transformers' names and back: configurations and tensors; the home of synonyms.

    config = import_config(json.loads(text))          # config.json to a ModelConfig
    theirs = export_tensors("llama", model.state_dict())

Three formats of transformers hold what TinyLM builds, `llama` (LlamaForCausalLM), `qwen3`
(Qwen3ForCausalLM) and `gpt2` (GPT2LMHeadModel). A model with any other mix of parts is written as
model_type `tinylm` under our own names, and `obstacles` says what keeps it from opening elsewhere.
All translations are exact: tensors are renamed, transposed, joined and split, never computed.

`gpt2` and `llama` hold the tables of the formats, `configs` and `tensors` apply them.
"""

from tinylm.convert.configs import (
    ModelType,
    eos_ids,
    export_config,
    import_config,
    kept,
    model_type,
    obstacles,
)
from tinylm.convert.tensors import (
    CONSTANTS,
    export_tensors,
    has_modules,
    import_tensors,
    module_name,
    tidy,
)

__all__ = [
    "CONSTANTS",
    "ModelType",
    "eos_ids",
    "export_config",
    "export_tensors",
    "has_modules",
    "import_config",
    "import_tensors",
    "kept",
    "model_type",
    "module_name",
    "obstacles",
    "tidy",
]
