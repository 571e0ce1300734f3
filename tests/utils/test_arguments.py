from argparse import ArgumentTypeError

import pytest

from utils.arguments import gigabytes, weight


def test_gigabytes_and_weights():
    assert [gigabytes(text) for text in ("0", "1.5", "1e-300", "1e9")] == [0.0, 1.5, 1e-300, 1e9]
    assert [weight(text) for text in ("0", "0.5", "1000")] == [0.0, 0.5, 1000.0]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e10", "much"])
def test_what_is_neither(text):
    with pytest.raises(ArgumentTypeError, match="is not a number of gigabytes"):
        gigabytes(text)
    with pytest.raises(ArgumentTypeError, match="is not a weight from 0 to 1000"):
        weight(text)
