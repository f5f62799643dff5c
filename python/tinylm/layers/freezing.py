"""Parameters that are taken out of training by `train.freeze`."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from torch import nn

from tinylm.config import ConfigError, Role

# blocks.0-3: the modules of several numbers.
RANGE = re.compile(r"(.+)\.(\d+)-(\d+)")
# Names of modules that an error lists.
SHOWN = 8


class HasRoles(Protocol):
    """The part of a `Model` that is needed here."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in order."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter with its full name."""

    def named_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every parameter with its full name and role."""


def freeze(net: HasRoles, entries: Sequence[str]) -> None:
    """Take the parameters that `train.freeze` names out of training: no gradient, no state.

    An entry is a role, a module (blocks.0, or blocks.0-3 for four), or a pattern of parameters'
    names. `ConfigError` for one that matches nothing, and if nothing would be left to train.
    """
    named = [*net.named_roles()]
    for entry in entries:
        found = [p for name, p, role in named if role == entry or matches(name, entry)]
        if not found:
            raise ConfigError(f"train.freeze={entry}: matches no parameter; {_what_there_is(net)}")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter, _ in named):
        raise ConfigError(f"train.freeze=[{','.join(entries)}]: leaves nothing to train")


def matches(name: str, entry: str) -> bool:
    """Whether an entry names a parameter or part: a part of it, a range of parts, a pattern."""
    if several := RANGE.fullmatch(entry):
        stem, first, last = several.groups()
        return any(matches(name, f"{stem}.{n}") for n in range(int(first), int(last) + 1))
    return fnmatchcase(name, entry) or name.startswith(f"{entry}.")


def _what_there_is(net: HasRoles) -> str:
    roles = ", ".join(dict.fromkeys(role for _, _, role in net.named_roles()))
    inner = [name for name in dict(net.blocks[0].named_parameters()) if name] if net.blocks else []
    more = ", ..." if len(inner) > SHOWN else ""
    tops = dict.fromkeys(name.partition(".")[0] for name, _ in net.named_parameters())
    return (
        f"there are the roles {roles}, the modules {', '.join(tops)} and blocks.0 to "
        f"blocks.{len(net.blocks) - 1}, and in a block {', '.join(inner[:SHOWN])}{more}"
    )
