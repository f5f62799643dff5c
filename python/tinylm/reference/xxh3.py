"""Bytes to a 64-bit number that changes when they do: XXH3 with seed 0, in plain integers.

A shard's manifest holds one such number for every block of 1 MiB, so that a flipped bit on the
disk is an error and not a strange loss. It is no signature: whoever wants two blocks with one
hash finds them.

The idea: multiply two 64-bit words, each changed by a fixed secret, to 128 bits, and fold the
halves with xor; every input bit reaches about half of the output. Short inputs are folded whole,
longer ones 16 bytes at a time, and beyond 240 bytes eight accumulators take 64 bytes a step:

    acc_i  <-  acc_i + low32(d_i ^ s_i) * high32(d_i ^ s_i),    acc_(i xor 1)  <-  ... + d_i

Cost: one multiplication for 8 bytes. Source: Collet 2019, "XXH3", doc/xxhash_spec.md of
github.com/Cyan4973/xxHash.
"""

MASK = (1 << 64) - 1
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
STRIPE, BLOCK = 64, 1024


def word(data: bytes, at: int, size: int = 8) -> int:
    """The little-endian number of `size` bytes at `at`."""
    return int.from_bytes(data[at : at + size], "little")


def fold(a: int, b: int) -> int:
    """The 128-bit product of a and b, its halves joined by xor."""
    product = a * b
    return (product ^ (product >> 64)) & MASK


def rotate(x: int, bits: int) -> int:
    """The 64 bits of x turned left."""
    return (x << bits | x >> (64 - bits)) & MASK


def spread(h: int) -> int:
    """Let each bit of h reach the lower ones: the last step of inputs over 8 bytes."""
    h = (h ^ h >> 37) * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


def spread_short(h: int) -> int:
    """The last step of inputs of up to 3 bytes."""
    h = (h ^ h >> 33) * P64[1] & MASK
    h = (h ^ h >> 29) * P64[2] & MASK
    return h ^ h >> 32


def secret(at: int) -> int:
    """Two neighbouring words of the secret, joined by xor."""
    return word(SECRET, at) ^ word(SECRET, at + 8)


def short(data: bytes) -> int:
    """The hash of at most 16 bytes."""
    n = len(data)
    if n == 0:
        return spread_short(secret(56))
    if n <= 3:
        joined = data[0] << 16 | data[n >> 1] << 24 | data[-1] | n << 8
        return spread_short(joined ^ word(SECRET, 0, 4) ^ word(SECRET, 4, 4))
    if n <= 8:
        h = word(data, n - 4, 4) + (word(data, 0, 4) << 32) ^ secret(8)
        h = (h ^ rotate(h, 49) ^ rotate(h, 24)) * 0x9FB21C651E98DF25 & MASK
        h = (h ^ (h >> 35) + n) * 0x9FB21C651E98DF25 & MASK
        return h ^ h >> 28
    low, high = word(data, 0) ^ secret(24), word(data, n - 8) ^ secret(40)
    swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
    return spread(n + swapped + high + fold(low, high) & MASK)


def pair(data: bytes, at: int, key: int) -> int:
    """16 bytes of data with 16 of the secret."""
    return fold(
        word(data, at) ^ word(SECRET, key),
        word(data, at + 8) ^ word(SECRET, key + 8),
    )


def middle(data: bytes) -> int:
    """The hash of 17 to 240 bytes: up to 128 from both ends inwards, then from the left."""
    n = len(data)
    acc = n * P64[0]
    if n <= 128:
        for i in range((n + 31) // 32):
            acc += pair(data, 16 * i, 32 * i) + pair(data, n - 16 * (i + 1), 32 * i + 16)
        return spread(acc & MASK)
    acc = spread(acc + sum(pair(data, 16 * i, 16 * i) for i in range(8)) & MASK)
    acc += sum(pair(data, 16 * i, 16 * (i - 8) + 3) for i in range(8, n // 16))
    return spread(acc + pair(data, n - 16, 136 - 17) & MASK)


def accumulate(acc: list[int], data: bytes, at: int, key: int) -> None:
    """Add the 64 bytes at `at` to the eight accumulators."""
    for i in range(8):
        d = word(data, at + 8 * i)
        keyed = d ^ word(SECRET, key + 8 * i)
        acc[i ^ 1] = acc[i ^ 1] + d & MASK
        acc[i] = acc[i] + (keyed & 0xFFFFFFFF) * (keyed >> 32) & MASK


def long(data: bytes) -> int:
    """The hash of more than 240 bytes: stripes of 64, the accumulators scrambled after 16."""
    n = len(data)
    acc = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]
    for begin in range(0, n, STRIPE):
        if begin and begin % BLOCK == 0:
            for i in range(8):
                acc[i] = (acc[i] ^ acc[i] >> 47 ^ word(SECRET, 128 + 8 * i)) * P32[0] & MASK
        # What is left of the last stripe is read with what stands before it.
        if begin + STRIPE < n:
            accumulate(acc, data, begin, begin % BLOCK // 8)
    accumulate(acc, data, n - STRIPE, 128 - 7)
    h = n * P64[0]
    for i in range(4):
        h += fold(
            acc[2 * i] ^ word(SECRET, 11 + 16 * i), acc[2 * i + 1] ^ word(SECRET, 19 + 16 * i)
        )
    return spread(h & MASK)


def xxh3_64(data: bytes) -> int:
    """The hash of `data`."""
    if len(data) <= 16:
        return short(data)
    return middle(data) if len(data) <= 240 else long(data)
