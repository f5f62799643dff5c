"""Our state dict to the tensors of a format and back: renamed, transposed, joined and split."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tinylm.convert.configs import FORMATS

# Constants that older files hold among the weights: causal masks and rotary frequencies.
CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def export_tensors(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the tensors of a format, contiguous; a tied matrix is there once.

    gpt2 keeps matrices as [inputs, outputs] and joins q, k and v into c_attn.
    """
    if kind == "tinylm":
        return {name: tensor.contiguous() for name, tensor in state.items()}
    form, theirs = FORMATS[kind], {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if form.joined and module.endswith((".attention.k", ".attention.v")):
            continue
        if form.joined and module.endswith(".attention.q"):
            stem = module[:-1]
            tensor = torch.cat([state[f"{stem}{part}.{leaf}"] for part in "qkv"])
        if form.joined and _transposed(module, tensor):
            tensor = tensor.T
        theirs[_rename(name, "blocks", form.names["blocks"], form.names)] = tensor.contiguous()
    return theirs


def import_tensors(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a format, as `tidy` gives them, to our state dict; the results are views.

    Raises `KeyError` for a name that the format does not have.
    """
    if kind == "tinylm":
        return dict(tensors)
    form, ours = FORMATS[kind], {}
    names = {theirs: name for name, theirs in form.names.items()}
    for name, tensor in tensors.items():
        renamed = _rename(name, form.names["blocks"], "blocks", names)
        module, _, leaf = renamed.rpartition(".")
        if form.joined and _transposed(module, tensor):
            tensor = tensor.T
        if form.joined and module.endswith(".attention.q"):
            stem = module[:-1]
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{stem}{part}.{leaf}"] = third
        else:
            ours[renamed] = tensor
    return ours


def has_modules(kind: str) -> bool:
    """Whether each of our matrices is one of the format's too; some formats join several."""
    return kind != "tinylm" and not FORMATS[kind].joined


def module_name(kind: str, module: str) -> str:
    """The format's name of one of our modules; ours where it has none (`has_modules`)."""
    if not has_modules(kind):
        return module
    form = FORMATS[kind]
    weight = _rename(f"{module}.weight", "blocks", form.names["blocks"], form.names)
    return weight.removesuffix(".weight")


def tidy(kind: str, tensors: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """The tensors of a file, of whatever age, under the names that transformers writes today.

    Adds the prefix that a bare GPT2Model or LlamaModel lacks, drops stored constants, and a
    head that repeats the embedding it is tied to; `ValueError` where it differs.
    """
    if kind == "tinylm":
        return dict(tensors)
    names, prefix = FORMATS[kind].names, FORMATS[kind].prefix
    bare = not any(name.startswith(prefix) for name in tensors)
    full = {
        prefix + name if bare and not name.startswith(names["head"]) else name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(CONSTANTS)
    }
    head, embedding = f"{names['head']}.weight", f"{names['embedding']}.weight"
    if tied and head in full and embedding in full:
        if not torch.equal(full[head], full[embedding]):
            raise ValueError(
                f"{head} differs from {embedding}, but tie_word_embeddings=true: "
                f"set it to false in config.json"
            )
        del full[head]
    return full


def _rename(name: str, blocks: str, new_blocks: str, names: Mapping[str, str]) -> str:
    """`name` with its module looked up in `names`, inside a block without the block's number."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith(f"{blocks}."):
        return f"{names[module]}.{leaf}"
    number, _, inner = module[len(blocks) + 1 :].partition(".")
    return f"{new_blocks}.{number}.{names[inner]}.{leaf}"


def _transposed(module: str, tensor: Tensor) -> bool:
    """Whether this tensor is a matrix of a block: a joined format keeps it [inputs, outputs]."""
    return module.startswith("blocks.") and tensor.dim() == 2
