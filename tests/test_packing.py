import math

import numpy as np
import pytest

from ldnq.errors import CheckpointError
from ldnq.packing import group, pack, packed_size, unpack

# levels: (codes in a group, bytes of a group), by hand: the fullest of 3^5 in 256, 5^24 in 2^56, and so on.
GROUPS = {3: (5, 1), 5: (24, 7), 7: (17, 6), 9: (5, 2), 11: (16, 7)}
LENGTHS = [0, 1, 2, 4, 5, 6, 16, 17, 23, 24, 25, 100, 997]


def _pack_with_big_integers(codes, base):
    digits, size = GROUPS[base]
    packed = b""
    for start in range(0, len(codes), digits):
        number = sum(int(code) * base**place for place, code in enumerate(codes[start : start + digits]))
        packed += number.to_bytes(size, "little")
    return packed


def _random_codes(count, base, seed=0):
    return np.random.default_rng([seed, count, base]).integers(0, base, count, dtype=np.uint8)


@pytest.mark.parametrize("base", GROUPS, ids="{} levels".format)
def test_groups_hold_as_many_codes_as_fit(base):
    assert group(base) == GROUPS[base]
    digits, size = GROUPS[base]
    assert base**digits <= 256**size < base ** (digits + 1)


@pytest.mark.parametrize("base", range(2, 257), ids=str)
def test_no_group_of_up_to_eight_bytes_wastes_less(base):
    fullest = max(math.floor(8 * size / math.log2(base) + 1e-9) / size for size in range(1, 9))
    digits, size = group(base)
    assert digits / size == pytest.approx(fullest)


@pytest.mark.parametrize("base", GROUPS, ids="{} levels".format)
@pytest.mark.parametrize("count", LENGTHS, ids="{} codes".format)
def test_packed_bytes_are_the_codes_as_digits_of_a_number(base, count):
    codes = _random_codes(count, base)
    packed = pack(codes, base)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == _pack_with_big_integers(codes, base)
    assert len(packed) == packed_size(count, base)


@pytest.mark.parametrize("base", [2, 3, 4, 5, 7, 9, 11, 16, 200, 255, 256], ids="{} levels".format)
def test_codes_come_back_from_streams_of_any_length(base):
    lengths = [0, 1, *np.random.default_rng(base).integers(2, 400, 20).tolist()]
    for count in lengths:
        codes = _random_codes(count, base)
        back = unpack(pack(codes, base), count, base)
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("base", [2, 3, 5, 7, 9, 11, 256], ids="{} levels".format)
def test_a_stream_of_only_the_highest_code_comes_back(base):
    codes = np.full(100, base - 1, dtype=np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, base), 100, base), codes)


@pytest.mark.parametrize("base", GROUPS, ids="{} levels".format)
def test_long_streams_take_within_1_2_percent_of_log2_of_the_levels(base):
    count = 100_003
    bits = 8 * len(pack(_random_codes(count, base), base))
    assert 1 <= bits / (count * math.log2(base)) < 1.012


def test_an_empty_stream_takes_no_bytes():
    assert packed_size(0, 7) == 0
    assert pack(np.empty(0, np.uint8), 7).tobytes() == b""


@pytest.mark.parametrize("base", GROUPS, ids="{} levels".format)
@pytest.mark.parametrize("surplus", [-1, 1], ids=["a byte short", "a byte long"])
def test_a_stream_of_the_wrong_length_is_refused(base, surplus):
    packed = pack(_random_codes(50, base), base)
    wrong = packed[:-1] if surplus < 0 else np.append(packed, np.uint8(0))
    with pytest.raises(CheckpointError, match=rf"^expected {len(packed)} bytes for 50 codes .* found {len(wrong)}$"):
        unpack(wrong, 50, base)


@pytest.mark.parametrize("base", GROUPS, ids="{} levels".format)
@pytest.mark.parametrize("excess", ["just above", "all ones"])
def test_a_group_above_the_highest_number_is_refused(base, excess):
    digits, size = GROUPS[base]
    number = base**digits if excess == "just above" else 256**size - 1
    good = (base**digits - 1).to_bytes(size, "little")
    packed = np.frombuffer(good + number.to_bytes(size, "little") + good, np.uint8)
    with pytest.raises(CheckpointError, match=rf"damaged: a group is above {base}\^{digits}"):
        unpack(packed, 3 * digits, base)
    np.testing.assert_array_equal(unpack(np.frombuffer(good, np.uint8), digits, base), np.full(digits, base - 1))
