"""A cache of pages in 8 bits out of one pool: as much of it as shows that a kernel reads it.

`tinylm.context.Cache` without `truncate` and `select`. Pages go to the rows in an order that no
row's own is, and the scales of what no token has filled are NaN.
"""

import torch

from tinylm import ops


class Pages:
    """Pages [N, K, page, head] of keys and values per layer, and a table [B, blocks] of them."""

    def __init__(self, model, rows, length, page):
        states, like = model.decode_states(), model.weight
        self.page = page
        blocks = -(-length // page)
        order = torch.randperm(rows * blocks, generator=torch.Generator().manual_seed(0))
        self.table = order.view(rows, blocks).to(like.device, torch.int32)
        self.lengths, self.longest = torch.zeros(rows, dtype=torch.int64, device=like.device), 0

        def pool(state, *last):
            return like.new_full((rows * blocks, state.heads, page, *last), torch.nan)

        self.stored = [
            [pool(state, state.size).nan_to_num(1).to(torch.int8) for _ in "kv"] for state in states
        ]
        self.scales = [[pool(state) for _ in "kv"] for state in states]

    def reserve(self, tokens):
        """As many as there are pages for."""

    def advance(self, tokens):
        self.lengths = self.lengths + tokens
        self.longest += tokens

    def attend(self, layer, q, k, v, context):
        place = self.lengths[:, None] + torch.arange(k.size(2), device=k.device)
        block, within = self.table.gather(1, place // self.page).long(), place % self.page
        for part, new in enumerate((k, v)):
            new, scale = ops.quantise_int8(new)
            self.scales[layer][part][block, :, within] = scale.transpose(1, 2)
            self.stored[layer][part][block, :, within] = new.transpose(1, 2)
        keys, values = self.stored[layer]
        k_scale, v_scale = self.scales[layer]
        named = {"k_scale": k_scale, "v_scale": v_scale, "window": context.mask.window}
        return ops.decode_attention(q, keys, values, self.lengths, table=self.table, **named)
