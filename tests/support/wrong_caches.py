"""The wrong lines of `make mutants` in the caches; see `wrong_lines`."""

from tests.support.wrong_lines import Mutant

CACHES = [
    Mutant(
        "python/tinylm/cache/contiguous.py",
        "return buffer[self.some, :, : self.max_length if self.fixed else self.longest + tokens]",
        "return buffer[self.some]",
        "decode_with",
    ),
    Mutant(
        "python/tinylm/cache/contiguous.py",
        "places = self.lengths[:, None] + torch.arange(tokens, device=x.device)",
        "places = self.longest + torch.arange(tokens, device=x.device).expand(len(x), -1)",
        "unequal",
        "tests/test_cache.py",
    ),
    Mutant(
        "python/tinylm/cache/blocks.py",
        "if block is None or self.content[block] != Content(key, parent, some):",
        "if block is None:",
        "Collisions",
        "tests/test_cache_blocks.py",
    ),
    Mutant(
        "python/tinylm/cache/blocks.py",
        "self.cached.pop(block, None)",
        "pass",
        "let_go_first",
        "tests/test_cache_blocks.py",
    ),
    Mutant(
        "python/tinylm/cache/paged.py",
        "if blocks.users[written] > 1:",
        "if blocks.users[written] > 2:",
        "last_of_two_forks",
        "tests/test_cache_paged.py",
    ),
    Mutant(
        "python/tinylm/cache/window.py",
        "if 0 < new < old and lost > self.first and lost > new - self.window + 1:",
        "if 0 < new < old and lost > self.first and lost > new:",
        "longer_than_the_slack",
        "tests/test_cache_window.py",
    ),
    Mutant(
        "python/tinylm/cache/window.py",
        "back = (end - self.first - self.window) // self.ring * self.ring",
        "back = end - self.first - self.window",
        "positions_move_back",
        "tests/test_cache_window.py",
    ),
    Mutant(
        "python/tinylm/layers/positions.py",
        "return ops.rope(k, cos, -sin)",
        "return ops.rope(k, cos, sin)",
        "positions_move_back",
        "tests/test_cache_window.py",
    ),
    Mutant(
        "python/tinylm/cache/saving.py",
        '_compare(path, "model", found["model"], hash_of(model))',
        "pass",
        "another_model",
        "tests/test_cache_saving.py",
    ),
]
