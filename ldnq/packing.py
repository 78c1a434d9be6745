"""Codes to bytes and back, close to log2(levels) bits a code.

A group of `digits` codes is one number in base `levels`, stored in `size` bytes, least significant first.
"""

from functools import cache

import numpy as np

from ldnq.errors import CheckpointError

MAX_BYTES = 8


@cache
def group(base: int) -> tuple[int, int]:
    """(digits, bytes) of the group of at most eight bytes that wastes least; the shortest of equals.

    >>> [group(base) for base in (3, 5, 7, 9, 11)]
    [(5, 1), (24, 7), (17, 6), (5, 2), (16, 7)]
    """
    # Integers throughout: digits is the largest number with base**digits <= 256**size.
    best = (0, 1)
    for size in range(1, MAX_BYTES + 1):
        digits = 0
        while base ** (digits + 1) <= 256**size:
            digits += 1
        if digits * best[1] > best[0] * size:
            best = (digits, size)
    return best


def packed_size(count: int, base: int) -> int:
    """Bytes that `count` codes below `base` take."""
    digits, size = group(base)
    return -(-count // digits) * size


def pack(codes: np.ndarray, base: int) -> np.ndarray:
    """Codes (n,) uint8 below `base` as (packed_size(n, base),) uint8."""
    digits, size = group(base)
    padded = np.zeros(-(-len(codes) // digits) * digits, dtype=np.uint8)
    padded[: len(codes)] = codes
    numbers = np.zeros(len(padded) // digits, dtype="<u8")
    for column in reversed(padded.reshape(-1, digits).T):
        numbers = numbers * np.uint64(base) + column
    return numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :size].ravel()


def unpack(packed: np.ndarray, count: int, base: int) -> np.ndarray:
    """The first `count` codes of what `pack` made; raises `CheckpointError` where the bytes cannot be its work."""
    digits, size = group(base)
    if len(packed) != packed_size(count, base):
        raise CheckpointError(
            f"expected {packed_size(count, base)} bytes for {count} codes of {base} levels, found {len(packed)}"
        )
    wide = np.zeros((len(packed) // size, 8), dtype=np.uint8)
    wide[:, :size] = packed.reshape(-1, size)
    numbers = wide.view("<u8").ravel().astype(np.uint64)
    codes = np.empty((len(numbers), digits), dtype=np.uint8)
    for column in range(digits):
        numbers, codes[:, column] = np.divmod(numbers, np.uint64(base))
    if numbers.any():
        raise CheckpointError(f"packed codes are damaged: a group is above {base}^{digits}")
    return codes.ravel()[:count]
