from argparse import ArgumentTypeError

import pytest

import train_fskd
from utils.argument_types import gigabytes, weight


def test_gigabytes_and_weights():
    assert [gigabytes(text) for text in ("0", "1.5", "1e-300", "1e9")] == [0.0, 1.5, 1e-300, 1e9]
    assert [weight(text) for text in ("0", "0.5", "1000")] == [0.0, 0.5, 1000.0]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e10", "much"])
def test_what_is_neither(text):
    with pytest.raises(ArgumentTypeError, match="is not a number of gigabytes"):
        gigabytes(text)
    with pytest.raises(ArgumentTypeError, match="is not a weight from 0 to 1000"):
        weight(text)


def test_paths_take_a_tilde_that_the_shell_did_not_expand(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--data_path=~/pics", "--output_dir=~/runs", "--teacher=~/t.pth"]
    args = train_fskd.arguments(flags)
    assert (args.data_path, args.output_dir, args.teacher) == tuple(
        tmp_path / name for name in ("pics", "runs", "t.pth")
    )
    assert train_fskd.arguments(["--predict", "~/s.pth", "~/x.jpg"]).predict == [tmp_path / "s.pth", tmp_path / "x.jpg"]
