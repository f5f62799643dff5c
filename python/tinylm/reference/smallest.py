"""A whole language model in one file of plain Python: words in, training, new words out.

    python -m tinylm.reference.smallest                 learn from the words of Python's manual
    python -m tinylm.reference.smallest words.txt       learn from the words of a text

Read it from top to bottom: numbers that find their gradients, operations on them, the model,
training, sampling. The model is Llama, as `tinylm.model` builds it, and the faster media must equal
this one (`tests/test_smallest.py`). Sources: Wengert 1964 and Linnainmaa 1970 for the gradients,
Kingma and Ba 2015 for Adam; `arrays` names those of the operations.
"""

import gc
import math
import os
import pydoc_data.topics
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise
from operator import attrgetter, mul
from pathlib import Path
from typing import Any

# 3,100 weights and 1,600 words, half a minute in all: more of either would learn more.
WIDTH, INNER, LAYERS, HEADS = 16, 32, 1, 4
STEPS, BATCH, RATE, SEED = 400, 4, 0.02, 0
LONGEST, TEMPERATURE = 24, 0.7


class Value:
    """A number, the operands it was computed from, and its slope (derivative) by each of them."""

    __slots__ = ("data", "gradient", "number", "operands", "slopes")
    # A result is computed after its operands, so it has a higher number than they have.
    numbers = count()

    def __init__(self, data: float, operands: "Row" = (), slopes: tuple[float, ...] = ()) -> None:
        self.data, self.operands, self.slopes = data, operands, slopes
        self.gradient, self.number = 0.0, next(self.numbers)

    def __add__(self, other: "Value | float") -> "Value":
        if isinstance(other, Value):
            return Value(self.data + other.data, (self, other), (1.0, 1.0))
        return Value(self.data + other, (self,), (1.0,))

    def __mul__(self, other: "Value | float") -> "Value":
        if isinstance(other, Value):
            return Value(self.data * other.data, (self, other), (other.data, self.data))
        return Value(self.data * other, (self,), (other,))

    def __pow__(self, n: float) -> "Value":
        return Value(self.data**n, (self,), (n * self.data ** (n - 1),))

    def __sub__(self, other: "Value | float") -> "Value":
        return self + other * -1.0

    def __truediv__(self, other: "Value | float") -> "Value":
        return self * other**-1.0

    def exp(self) -> "Value":
        """e^x, which is its own slope."""
        y = math.exp(self.data)
        return Value(y, (self,), (y,))

    def log(self) -> "Value":
        """The natural logarithm, of slope 1 / x."""
        return Value(math.log(self.data), (self,), (1 / self.data,))

    def tanh(self) -> "Value":
        """y = tanh x, of slope 1 - y^2."""
        y = math.tanh(self.data)
        return Value(y, (self,), (1 - y * y,))


Row = tuple[Value, ...]
Vector = list[Value]
Matrix = list[Vector]
Weights = dict[str, Any]
Past = dict[int, tuple[list[Matrix], list[Matrix]]]


def total(x: Vector) -> Value:
    """The sum of x as one operation, each slope 1."""
    return Value(sum(a.data for a in x), tuple(x), (1.0,) * len(x))


def dot(x: Vector, y: Vector) -> Value:
    """The sum of x_i y_i as one operation, with slope y_i by x_i and x_i by y_i."""
    xs, ys = [a.data for a in x], [b.data for b in y]
    return Value(sum(map(mul, xs, ys)), (*x, *y), (*ys, *xs))


def backward(loss: Value) -> None:
    """Add d(loss)/d(x) to the gradient of every x that `loss` was computed from.

    The chain rule: an operand gains the result's gradient times its slope, once for each use.
    """
    found, stack = {loss}, [loss]
    while stack:
        for operand in stack.pop().operands:
            # A number without operands, such as a weight, has nothing to hand on.
            if operand.operands and operand not in found:
                found.add(operand)
                stack.append(operand)
    loss.gradient = 1.0
    # Highest number first: before a value hands its gradient on, everything that was computed from
    # it has added its part.
    for value in sorted(found, key=attrgetter("number"), reverse=True):
        for operand, slope in zip(value.operands, value.slopes, strict=True):
            operand.gradient += value.gradient * slope


def linear(x: Vector, weight: Matrix) -> Vector:
    """y_o = sum over i of W_oi x_i."""
    return [dot(row, x) for row in weight]


def add(x: Vector, y: Vector) -> Vector:
    """x_i + y_i."""
    return [a + b for a, b in zip(x, y, strict=True)]


def rms_norm(x: Vector, weight: Vector, eps: float) -> Vector:
    """x_i / sqrt(mean over j of x_j^2 + eps) * w_i."""
    scale = (dot(x, x) / len(x) + eps) ** -0.5
    return [a * scale * w for a, w in zip(x, weight, strict=True)]


def rope(x: Vector, position: int, theta: float) -> Vector:
    """Turn each pair (x_i, x_{i + half}) by the angle position * theta^(-i / half)."""
    half = len(x) // 2
    angles = [position * theta ** (-i / half) for i in range(half)]
    cos, sin = [math.cos(t) for t in angles], [math.sin(t) for t in angles]
    first = [x[i] * cos[i] - x[i + half] * sin[i] for i in range(half)]
    return first + [x[i + half] * cos[i] + x[i] * sin[i] for i in range(half)]


def softmax(x: Vector) -> Vector:
    """e^x_i / sum over j of e^x_j: positive, and together 1."""
    # x and x - c have one softmax; with c = max x, no power overflows.
    largest = max(a.data for a in x)
    powers = [(a - largest).exp() for a in x]
    scale = total(powers) ** -1.0
    return [p * scale for p in powers]


def attention(q: Vector, keys: Matrix, values: Matrix) -> Vector:
    """The sum of the v_s, each times its share: softmax over s of (q . k_s / sqrt(len(q)))."""
    shares = softmax([dot(q, k) / math.sqrt(len(q)) for k in keys])
    return [dot(shares, list(column)) for column in zip(*values, strict=True)]


def multi_head_attention(
    q: Matrix, k: Matrix, v: Matrix, past: tuple[list[Matrix], list[Matrix]]
) -> Vector:
    """Attention of each head of one token, one after another; `past` gains its keys and values.

    Where there are fewer heads of keys and values than of queries, neighbouring queries share one.
    """
    keys, values = past
    # Later tokens read these again: what came before never depends on what comes next.
    keys.append(k)
    values.append(v)
    read: Vector = []
    for h, query in enumerate(q):
        g = h * len(k) // len(q)
        read += attention(query, [k[g] for k in keys], [v[g] for v in values])
    return read


def silu(x: Value) -> Value:
    """x sigmoid(x), with sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow."""
    return x * ((x * 0.5).tanh() + 1.0) * 0.5


def swiglu(gate: Vector, up: Vector) -> Vector:
    """silu(gate_i) up_i."""
    return [silu(g) * u for g, u in zip(gate, up, strict=True)]


def surprise(logits: Vector, target: int) -> Value:
    """-log softmax(z)_target in nats: log(sum over j of e^z_j) - z_target."""
    largest = max(z.data for z in logits)
    return total([(z - largest).exp() for z in logits]).log() + largest - logits[target]


def logits(
    weights: Weights, token: int, past: Past, n_heads: int, theta: float = 1e4, eps: float = 1e-5
) -> Vector:
    """A score for each token that may come next; `past` gains this token's keys and values.

    `weights` go by the names of `Model.named_parameters()`.
    """
    x: Vector = weights["embedding.weight"][token]
    size, layer = len(x) // n_heads, 0
    position = len(past[0][0]) if past else 0
    while f"blocks.{layer}.attention.q.weight" in weights:
        start, end = f"blocks.{layer}.", ".weight"
        w = {n.removeprefix(start).removesuffix(end): weights[n] for n in weights if start in n}
        y = rms_norm(x, w["attention_norm"], eps)
        q, k, v = (cut(linear(y, w[f"attention.{part}"]), size) for part in "qkv")
        q, k = ([rope(head, position, theta) for head in heads] for heads in (q, k))
        read = multi_head_attention(q, k, v, past.setdefault(layer, ([], [])))
        x = add(x, linear(read, w["attention.o"]))
        y = rms_norm(x, w["feedforward_norm"], eps)
        inner = swiglu(linear(y, w["feedforward.gate"]), linear(y, w["feedforward.up"]))
        x = add(x, linear(inner, w["feedforward.down"]))
        layer += 1
    # Without a head of its own, the model scores by its embedding.
    head: Matrix = weights.get("head.weight") or weights["embedding.weight"]
    return linear(rms_norm(x, weights["norm.weight"], eps), head)


def cut(x: Vector, size: int) -> Matrix:
    """x in parts of one size."""
    return [x[i : i + size] for i in range(0, len(x), size)]


def start(vocab_size: int, draw: random.Random) -> Weights:
    """The weights before training: matrices at random, and 1 in the norms."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab_size, WIDTH), "norm": (WIDTH,)}
    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        shapes |= {f"{block}.attention.{part}": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{block}.feedforward.{part}": (INNER, WIDTH) for part in ("gate", "up")}
        shapes |= {f"{block}.feedforward.down": (WIDTH, INNER)}
        shapes |= {f"{block}.{part}_norm": (WIDTH,) for part in ("attention", "feedforward")}

    def drawn(rows: int, columns: int = 0) -> list[Any]:
        if not columns:
            return [Value(1.0) for _ in range(rows)]
        # This deviation keeps y = W x about as large as x.
        return [[Value(draw.gauss(0, columns**-0.5)) for _ in range(columns)] for _ in range(rows)]

    return {f"{name}.weight": drawn(*shape) for name, shape in shapes.items()}


def mean_loss(weights: Weights, texts: list[list[int]]) -> Value:
    """Mean surprise, in nats, at each token of the texts but the first, which nothing precedes."""
    surprises: Vector = []
    for text in texts:
        past: Past = {}
        for token, target in pairwise(text):
            surprises.append(surprise(logits(weights, token, past, HEADS), target))
    return total(surprises) / len(surprises)


def train(
    weights: Weights, texts: list[list[int]], steps: int, draw: random.Random
) -> Iterator[float]:
    """Change the weights by Adam, with a rate that falls to 0; yields the loss of each batch."""
    b1, b2, eps = 0.9, 0.95, 1e-8
    rows = [row for w in weights.values() for row in (w if isinstance(w[0], list) else [w])]
    moments = [(w, 0.0, 0.0) for row in rows for w in row]
    for t in range(1, steps + 1):
        loss = mean_loss(weights, draw.choices(texts, k=BATCH))
        backward(loss)
        rate = RATE * (1 - (t - 1) / steps)
        for i, (w, m, v) in enumerate(moments):
            m = b1 * m + (1 - b1) * w.gradient
            v = b2 * v + (1 - b2) * w.gradient**2
            # Both means start at 0, and so are too small by 1 - b^t.
            w.data -= rate * m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps)
            w.gradient, moments[i] = 0.0, (w, m, v)
        yield loss.data


def sample(weights: Weights, alphabet: str, draw: random.Random) -> str:
    """A new word, drawn character by character until the mark or the longest word."""
    word, token, past = "", 0, Past()
    while len(word) < LONGEST:
        # A temperature below 1 makes likely characters likelier.
        scores = [z / TEMPERATURE for z in logits(weights, token, past, HEADS)]
        shares = [share.data for share in softmax(scores)]
        (token,) = draw.choices(range(len(shares)), shares)
        if token == 0:
            break
        word += alphabet[token]
    return word


def read(file: str | None) -> list[str]:
    """The different words of a text, in order; without a file those of Python's documentation."""
    if file is None:
        prose = " ".join(pydoc_data.topics.topics.values())
        return sorted(set(re.findall(r"\b[a-z]{3,}\b", prose)))
    try:
        every = sorted(set(Path(file).read_text(encoding="utf-8-sig").split()))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    words = [word for word in every if len(word) <= LONGEST]
    if len(words) < len(every):
        print(f"{len(every) - len(words)} words of over {LONGEST} characters are left out")
    if len(words) < 2:
        raise ValueError(f"{file}: {len(words)} different words; it takes at least 2 to learn")
    return words


def learn(words: list[str], steps: int = STEPS, seed: int = SEED) -> None:
    """Train on the words but for 40, print the progress and the loss on those 40, and new words."""
    draw = random.Random(seed)
    # Token 0, a mark that no word holds, stands at both ends of each.
    alphabet = "\n" + "".join(sorted(set("".join(words))))
    texts = [[alphabet.index(c) for c in f"\n{word}\n"] for word in draw.sample(words, len(words))]
    held_out = min(40, len(texts) // 2)
    held, texts = texts[:held_out], texts[held_out:]
    weights = start(len(alphabet), draw)
    # What to beat. Each count starts at 1, because a held-out word may have a new character.
    seen = Counter(token for text in texts for token in text[1:])
    smooth = seen.total() + len(alphabet)
    alone = [-math.log((seen[token] + 1) / smooth) for text in held for token in text[1:]]
    print(
        f"{len(words)} words, {held_out} of them held out; {len(alphabet) - 1} characters",
        flush=True,
    )
    losses = []
    for step, loss in enumerate(train(weights, texts, steps, draw), 1):
        losses.append(loss)
        if step % math.ceil(steps / 10) == 0 or step == steps:
            print(f"step {step:4} of {steps}: loss {sum(losses) / len(losses):.2f}", flush=True)
            losses.clear()
    print(f"on the words held out: {mean_loss(weights, held).data:.2f} nats per character,")
    print(f"by the frequency of each character alone: {sum(alone) / len(alone):.2f}")
    new = [sample(weights, alphabet, draw) for _ in range(20)]
    print("new words:", " ".join(filter(None, new)))


def main() -> None:
    """Run the command line."""
    files = sys.argv[1:]
    if "-h" in files or "--help" in files:
        print(__doc__)
        return
    if len(files) > 1:
        sys.exit(f"error: {len(files)} arguments; it takes one file or none, see --help")
    # Values form no cycles, so the collector finds nothing; it would take a third of the time.
    gc.disable()
    try:
        learn(read(files[0] if files else None))
    except BrokenPipeError:
        # The reader has left (`| head`): nobody is there to be told, not by the last flush either.
        os._exit(0)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
