"""Ranks without processes: a replacement for the connection records when ranks wait for each other."""

from unittest.mock import MagicMock

import pytest

import train_fskd
from experiments import ranks
from experiments.ranks import LeaderFailed, Rank, RankLost
from utils.errors import BadInput
from utils.torchrun import prints_for_all


@pytest.fixture
def events(monkeypatch):
    """What happens, in order; `events.others`: whether the other ranks succeed."""

    class Events(list):
        others = True

    recorded = Events()

    def all_reduce(least, operation, group):
        recorded.append(f"meets the others, {'succeeded' if least else 'failed'}")
        least.fill_(int(bool(least) and recorded.others))

    monkeypatch.setattr(ranks.distributed, "all_reduce", all_reduce)
    return recorded


def test_the_leader_runs_the_block_before_the_others(events):
    with Rank(0, 2).leader_first():
        events.append("prepares")
    assert events == ["prepares", "meets the others, succeeded"]
    events.clear()
    with Rank(1, 2).leader_first():
        events.append("reads")
    assert events == ["meets the others, succeeded", "reads"]


def test_a_failure_of_the_leader_stops_the_others(events):
    with pytest.raises(BadInput), Rank(0, 2).leader_first():
        raise BadInput("no teacher")
    assert events == ["meets the others, failed"]
    events.others = False
    with pytest.raises(LeaderFailed), Rank(1, 2).leader_first():
        pytest.fail("went on without the leader's work")


def test_a_single_process_does_not_wait(events):
    with Rank().leader_first():
        Rank().wait()
    assert events == []


def test_the_connections_are_closed_also_after_an_error(monkeypatch, tmp_path):
    closed = []
    monkeypatch.setattr(ranks.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.distributed, "destroy_process_group", lambda: closed.append(True))
    assert train_fskd.main(["--table", "--output_dir", str(tmp_path)]) == 2 and closed == [True]


def test_a_lost_rank_is_one_line(monkeypatch):
    def closed(*_, **__):
        raise RuntimeError("Connection closed by peer\n[traceback of another library]")

    monkeypatch.setattr(ranks.distributed, "all_reduce", closed)
    with pytest.raises(RankLost, match="another process of this torchrun has ended") as lost:
        Rank(0, 2).wait()
    assert "\n" not in str(lost.value)


def test_a_rank_that_is_done_does_not_mind_that_the_leader_has_ended(monkeypatch):
    monkeypatch.setattr(ranks.distributed, "all_reduce", MagicMock(side_effect=RuntimeError("closed by peer")))
    Rank(1, 2).wait()
    with pytest.raises(RankLost), Rank(1, 2).leader_first():
        pytest.fail("went on without the leader's work")


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK is set, MASTER_ADDR is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT=: is not a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT=x: is not a"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK=first: is not a whole number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK=: is not a whole number"),
        (
            {"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "RANK=3 WORLD_SIZE=2: start",
        ),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1 WORLD_SIZE=1: start with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "0"}, "RANK=0 WORLD_SIZE=1: start with torchrun"),
    ],
)
def test_variables_left_over_in_the_environment_are_one_line(monkeypatch, variables, line):
    for name, value in {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks.distributed, "rendezvous", lambda *_, **__: pytest.fail("joined"))
    with pytest.raises(BadInput, match=line):
        ranks.join()


def test_only_the_first_rank_prints_what_concerns_all(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert prints_for_all()  # the others are not set, so this is no process of torchrun
    for name in ranks.VARIABLES:
        monkeypatch.setenv(name, "2")
    for rank, prints in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert prints_for_all() is prints


def test_processes_that_cannot_be_reached_are_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise RuntimeError("connect() timed out\n[another library's traceback]")

    monkeypatch.setattr(ranks.distributed, "rendezvous", unreachable)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(BadInput, match="RANK=1: the other processes cannot be reached") as refusal:
        ranks.join()
    assert "\n" not in str(refusal.value)
