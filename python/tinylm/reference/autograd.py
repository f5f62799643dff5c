"""Numbers that remember how they were made, so that the gradient of the last falls out.

    x, y = Value(2.0), Value(3.0)
    z = x * y + x
    backward(z)
    x.gradient, y.gradient        # dz/dx = y + 1 = 4.0, dz/dy = x = 2.0

A `Value` is one float. Each operation on it makes another one that keeps its operands p_i and
the numbers d_i = d(result)/d(p_i), known at that moment. `backward` walks from the result to
the inputs and applies the chain rule at every step:

    dL/dp_i  +=  dL/d(result) * d_i

The `+=` is the multivariate part of the rule: a value used twice has two paths to the loss.
That is all of backpropagation; `scalars` builds a transformer on it.

Cost: one Python object for every number ever computed, which takes microseconds; a product of
matrices does thousands of multiplications in that time.
Source: Wengert 1964; Linnainmaa 1970; Rumelhart, Hinton and Williams 1986.
"""

import math
from collections.abc import Iterable


class Value:
    """A float, its operands with the derivatives by them, and the loss's derivative by it."""

    __slots__ = ("data", "gradient", "operands")

    def __init__(self, data: float, operands: tuple[tuple["Value", float], ...] = ()) -> None:
        self.data = data
        self.operands = operands
        self.gradient = 0.0

    def __repr__(self) -> str:
        return f"Value({self.data}, gradient={self.gradient})"

    def __add__(self, other: "Value | float") -> "Value":
        """x + y; d/dx = d/dy = 1."""
        if isinstance(other, Value):
            return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))
        return Value(self.data + other, ((self, 1.0),))

    def __mul__(self, other: "Value | float") -> "Value":
        """x y; d/dx = y, d/dy = x."""
        if isinstance(other, Value):
            return Value(self.data * other.data, ((self, other.data), (other, self.data)))
        return Value(self.data * other, ((self, other),))

    def __pow__(self, exponent: float) -> "Value":
        """x^n for a constant n; d/dx = n x^(n - 1). A negative x wants a whole n."""
        return Value(self.data**exponent, ((self, exponent * self.data ** (exponent - 1)),))

    def exp(self) -> "Value":
        """e^x; d/dx = e^x."""
        y = math.exp(self.data)
        return Value(y, ((self, y),))

    def log(self) -> "Value":
        """Natural logarithm; d/dx = 1 / x."""
        return Value(math.log(self.data), ((self, 1 / self.data),))

    def tanh(self) -> "Value":
        """tanh x; d/dx = 1 - tanh(x)^2."""
        y = math.tanh(self.data)
        return Value(y, ((self, 1 - y * y),))

    def relu(self) -> "Value":
        """max(x, 0); d/dx = 1 where x > 0, else 0."""
        return Value(max(self.data, 0.0), ((self, float(self.data > 0)),))

    # The rest is made of the above, and so needs no derivative of its own.

    def __neg__(self) -> "Value":
        return self * -1.0

    def __sub__(self, other: "Value | float") -> "Value":
        return self + -other

    def __truediv__(self, other: "Value | float") -> "Value":
        return self * other**-1.0

    def __radd__(self, other: float) -> "Value":
        return self + other

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __rsub__(self, other: float) -> "Value":
        return -self + other

    def __rtruediv__(self, other: float) -> "Value":
        return self**-1.0 * other


def total(values: Iterable[Value]) -> Value:
    """The sum of `values` as one operation with many operands; each d/dx is 1."""
    values = tuple(values)
    return Value(sum(v.data for v in values), tuple((v, 1.0) for v in values))


def dot(a: Iterable[Value], b: Iterable[Value]) -> Value:
    """a . b = sum over i of a_i b_i."""
    return total(x * y for x, y in zip(a, b, strict=True))


def topological(result: Value) -> list[Value]:
    """Every value that `result` depends on, operands before what was made of them.

    Depth first, with a stack of its own: a transformer's chain of operations is deeper than
    Python's recursion may go.
    """
    order: list[Value] = []
    seen: set[Value] = set()
    stack = [(result, False)]
    while stack:
        value, operands_done = stack.pop()
        if operands_done:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((operand, False) for operand, _ in value.operands)
    return order


def backward(result: Value) -> None:
    """Add d(result)/d(x) to the gradient of every value x that `result` was made of.

    In reverse topological order a value's gradient is complete, all paths to the result
    summed, before it is passed on. Nothing is set back to 0 first: call it once on one graph.
    """
    result.gradient = 1.0
    for value in reversed(topological(result)):
        for operand, derivative in value.operands:
            operand.gradient += value.gradient * derivative
