"""Functions of one element that several kernels need, accurate to a few units in the last place."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    a = tl.abs(x)
    e = tl.exp(-2 * a)
    y = (1 - e) / (1 + e)
    y = tl.where(x < 0, -y, y)
    if x.dtype == tl.float32:
        # 1 - e cancels for small x: take the series there.
        s = x * x
        p = ((s * (62.0 / 2835.0) - 17.0 / 315.0) * s + 2.0 / 15.0) * s - 1.0 / 3.0
        y = tl.where(a < 0.25, x + x * s * p, y)
    return y
