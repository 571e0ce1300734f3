"""Ranks without processes: a stand-in for the connection notes who meets whom, and when."""

import pytest

from experiments import ranks
from experiments.ranks import LeaderFailed, Rank, RankLost
from utils.errors import BadInput


@pytest.fixture
def events(monkeypatch):
    """What happens in order; `events.others` is what the other ranks say."""

    class Events(list):
        others = True

    noted = Events()

    def all_reduce(sounds, operation):
        noted.append(f"meets the others, {'sound' if sounds else 'failed'}")
        sounds.fill_(int(bool(sounds) and noted.others))

    monkeypatch.setattr(ranks.distributed, "all_reduce", all_reduce)
    return noted


def test_the_leader_goes_through_the_block_before_the_others(events):
    with Rank(0, 2).leader_first():
        events.append("prepares")
    assert events == ["prepares", "meets the others, sound"]
    events.clear()
    with Rank(1, 2).leader_first():
        events.append("reads")
    assert events == ["meets the others, sound", "reads"]


def test_a_leader_that_fails_says_so_to_the_others(events):
    with pytest.raises(BadInput), Rank(0, 2).leader_first():
        raise BadInput("no teacher")
    assert events == ["meets the others, failed"]
    events.others = False
    with pytest.raises(LeaderFailed), Rank(1, 2).leader_first():
        pytest.fail("went on without the leader's work")


def test_a_rank_alone_waits_for_nobody(events):
    with Rank().leader_first():
        Rank().wait()
    assert events == []


def test_a_lost_rank_is_one_line(monkeypatch):
    def closed(*_):
        raise RuntimeError("Connection closed by peer\n[traceback of another library]")

    monkeypatch.setattr(ranks.distributed, "all_reduce", closed)
    with pytest.raises(RankLost, match="another process of this torchrun is gone") as lost:
        Rank(1, 2).wait()
    assert "\n" not in str(lost.value)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR or MASTER_PORT is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_ADDR or MASTER_PORT is not"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "must be whole numbers"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "must be whole numbers"),
    ],
)
def test_variables_left_over_in_the_environment_are_one_line(monkeypatch, variables, line):
    for name, value in {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=line):
        ranks.join()


def test_only_the_first_rank_speaks_of_what_concerns_all(monkeypatch):
    assert ranks.speaks()
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert ranks.speaks() is speaks
