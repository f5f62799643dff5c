"""Which targets of a row are the assistant's words: read off the marks among its tokens."""

from typing import TYPE_CHECKING

from tinylm.data.shards import Dataset
from tinylm.tokenizer import chat

if TYPE_CHECKING:
    import torch

    from tinylm.tokenizer import Tokenizer


class Answers:
    """Leaves out the targets of a row that the assistant did not write.

    Counted are its words and the mark that ends its turn. A row that begins inside a
    conversation counts nothing until the next mark shows who speaks.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        marks = chat.need_marks(tokenizer)
        self.assistant = marks.assistant
        others = {*marks.roles.values(), marks.end} - {marks.assistant}
        self.others = (*sorted(others), *(() if tokenizer.eos_id is None else (tokenizer.eos_id,)))

    def __call__(self, tokens: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """tokens [B, T] and targets [B, T] to the targets, -100 where they do not count."""
        import torch

        from tinylm.ops import IGNORED

        place = torch.arange(1, tokens.size(-1) + 1, device=tokens.device)
        begins = tokens == self.assistant
        ends = torch.zeros_like(begins)
        for other in self.others:
            ends |= tokens == other
        # The place of the last mark of each sort up to here, 0 for none.
        open_since = torch.where(begins, place, 0).cummax(-1).values
        shut_since = torch.where(ends, place, 0).cummax(-1).values
        return targets.masked_fill(open_since <= shut_since, IGNORED)


def answers(setting: str, dataset: Dataset, tokenizer: "Tokenizer | None") -> Answers | None:
    """The filter of targets that `data.loss` asks for; None if every target counts.

    auto is assistant for a dataset of conversations and all for text. `ValueError` if the words of
    the assistant are to be found without a tokenizer.
    """
    wanted = dataset.kind == "chat" if setting == "auto" else setting == "assistant"
    if not wanted:
        return None
    if tokenizer is None:
        raise ValueError(
            f"data.loss={setting}: only the tokenizer knows which tokens of {dataset.folder} are "
            f"the assistant's: pass tokenizer=, or set data.loss=all"
        )
    return Answers(tokenizer)
