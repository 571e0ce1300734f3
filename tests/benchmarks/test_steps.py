import sys

from benchmarks import steps
from models.networks import NETWORKS


def test_both_forms_are_timed_at_every_batch_size(monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "vgg16", NETWORKS["vgg11-small"])
    monkeypatch.setattr(steps, "ROUNDS", 1)
    monkeypatch.setattr(steps, "IN_A_ROW", 1)
    monkeypatch.setattr(sys, "argv", ["steps.py", "--batch", "2", "20"])
    steps.main()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[2:]] == [[b, name] for b in ("2", "20") for name in ("B0", "B1", "L2", "L3")]
    assert all(float(time) > 0 for line in lines[2:] for time in line[2:])
