from argparse import ArgumentTypeError

import pytest

from utils.arguments import gigabytes, weight


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1.5", 1.5), ("1e-300", 1e-300), ("1e9", 1e9)])
def test_gigabytes(text, value):
    assert gigabytes(text) == value and int(gigabytes(text) * 1e9) <= 10**18


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e300", "1e10", "much"])
def test_what_is_no_size_of_memory(text):
    with pytest.raises(ArgumentTypeError, match="is not a number of gigabytes"):
        gigabytes(text)


def test_weights():
    assert [weight(text) for text in ("0", "0.5", "1000")] == [0.0, 0.5, 1000.0]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1001", "much"])
def test_what_is_no_weight(text):
    with pytest.raises(ArgumentTypeError, match="is not a weight from 0 to 1000"):
        weight(text)
