"""A map of characters as SentencePiece's files have it: `precompiled_charsmap`."""

import struct


def packed(chars: dict[str, str]) -> bytes:
    """The bytes of a map: a trie over bytes in Darts' layout, and what stands for its keys.

    A cell says its label, the distance to its children, and whether a key ends there. Each node has
    a block of 256 cells of its own for its children: large, but plain.
    """
    replacements, places = b"", {}
    for key, value in chars.items():
        places[key.encode()] = len(replacements)
        replacements += value.encode() + b"\0"
    nodes = sorted({key[:end] for key in places for end in range(len(key))} | {*places} | {b""})
    block = {node: 256 * number for number, node in enumerate(nodes, start=1)}
    cells = [0] * (256 * (len(nodes) + 1))
    for node in nodes:
        # The root is cell 0; another node lies in the block of the one above it.
        at = block[node[:-1]] ^ node[-1] if node else 0
        is_key = node in places
        cells[at] = (at ^ block[node]) << 10 | is_key << 8 | (node[-1] if node else 0)
        if is_key:
            cells[block[node]] = 1 << 31 | places[node]
    trie = struct.pack(f"<{len(cells)}I", *cells)
    return struct.pack("<I", len(trie)) + trie + replacements
