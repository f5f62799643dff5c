"""A cache that stores keys and values in blocks of two tokens: a stand-in for paged storage."""

import torch

SIZE = 2


class Blocks:
    """`tinylm.context.Cache` over lists of blocks [K, 2, head], one list per layer and row."""

    def __init__(self, states, rows):
        self.states, self.earlier = states, {}
        self.stored = [[([], []) for _ in range(rows)] for _ in states]
        self.lengths, self.longest = torch.zeros(rows, dtype=torch.int64), 0

    def reserve(self, tokens):
        """A list has no end."""

    def advance(self, tokens):
        self.lengths = self.lengths + tokens
        self.longest += tokens

    def truncate(self, lengths):
        self.lengths = torch.minimum(lengths, self.lengths)
        self.longest = int(self.lengths.max())

    def clear(self):
        self.truncate(torch.zeros_like(self.lengths))

    def select(self, rows):
        taken = Blocks(self.states, len(rows))
        taken.stored = [
            [tuple([block.clone() for block in part] for part in layer[row]) for row in rows]
            for layer in self.stored
        ]
        taken.earlier = {
            (slot, new): list(self.earlier[slot, old])
            for slot in {slot for slot, _ in self.earlier}
            for new, old in enumerate(rows.tolist())
        }
        taken.lengths, taken.longest = self.lengths[rows], int(self.lengths[rows].max())
        return taken

    def attend(self, layer, q, k, v, context):
        joined = []
        for part, new in enumerate((k, v)):
            rows = [self.put(layer, row, part, new[row]) for row in range(len(new))]
            joined.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2))
        attend = self.states[layer].attend
        return attend(q, *joined, mask=context.mask, past=self.lengths)

    def before(self, slot, x):
        """One row after the other: the last token's x, and a list of all for `truncate`."""
        rows = []
        for row, new in enumerate(x):
            earlier = self.earlier.setdefault((slot, row), [])
            del earlier[int(self.lengths[row]) :]
            last = earlier[-1] if earlier else torch.zeros_like(new[0])
            rows.append(torch.stack([last, *new[:-1]]))
            earlier.extend(new)
        return torch.stack(rows)

    def put(self, layer, row, part, new):
        """Store new [K, T, head] where the row ends; the whole row [S, K, head], joined."""
        blocks, start = self.stored[layer][row][part], int(self.lengths[row])
        for t in range(new.size(1)):
            number, place = divmod(start + t, SIZE)
            if number == len(blocks):
                blocks.append(new.new_zeros(new.size(0), SIZE, new.size(2)))
            blocks[number][:, place] = new[:, t]
        return torch.cat(blocks, 1)[:, : start + new.size(1)].transpose(0, 1)


def build(model, rows, length):
    """An empty one, as `tinylm.cache.build` makes the other kind."""
    return Blocks(model.decode_states(), rows)
