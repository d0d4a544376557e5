"""Calls that end worker processes: which clients are tried alone, and which are left out."""

from itertools import chain

import pytest

from fedsim.engine.blocks import Block
from fedsim.engine.calls import MAX_DEATHS, Call


def block(*clients):
    """A block whose columns tell whose they are."""
    return Block(
        server_round=1,
        clients=clients,
        states=tuple(f"state {c}" for c in clients),
        config={},
        reduce=True,
        weights=tuple(float(c) for c in clients),
    )


def played(call, deadly):
    """Make the call and all that follow; the clients of each that ended well, in order."""
    waiting, ended_well = [call], []
    while waiting:
        now = waiting.pop(0)
        blocks = now.arguments[0]
        clients = list(chain.from_iterable(b.clients for b in blocks))
        left = set(clients) - set(blocks[0].fatal)
        if deadly(left):
            again = now.ended_a_worker()
            if again is None:
                return None
            waiting += again
        else:
            ended_well.append(clients)
            waiting += now.answered()
    return ended_well


def test_the_clients_that_end_workers_are_left_out_and_the_others_stay_in_their_blocks():
    call = Call(([block(1, 2), block(3, 4)], "train"), 7)
    deaths = []
    ended_well = played(call, lambda left: deaths.append(left) or bool(left & {2, 3}))
    assert ended_well == [[1], [4], [1, 2, 3, 4]]
    assert call.fatal == {2, 3}
    assert [b.clients for b in call.arguments[0]] == [(1, 2), (3, 4)]
    assert [b.fatal for b in call.arguments[0]] == [{2, 3}, {2, 3}]
    assert len(deaths) == 3 * MAX_DEATHS + len(ended_well)


def test_a_client_in_a_call_of_its_own_is_tried_as_often_as_others():
    call, deaths = Call(([block(5)], "train"), 0), []
    assert played(call, lambda left: 5 in left and not deaths.append(5)) == [[5]]
    assert len(deaths) == 2 * MAX_DEATHS
    assert call.fatal == {5}


def test_deaths_by_chance_leave_nobody_out():
    call = Call(([block(1, 2)], "train"), 0)
    bad_luck = iter([True] * MAX_DEATHS)
    assert played(call, lambda left: next(bad_luck, False)) == [[1], [2], [1, 2]]
    assert call.fatal == frozenset()


def test_a_call_without_its_fatal_client_survives_some_bad_luck():
    call = Call(([block(1, 2)], "train"), 0)
    bad_luck = iter([True] * (MAX_DEATHS - 1))

    def deadly(left):
        return 2 in left or (bool(call.fatal) and next(bad_luck, False))

    assert played(call, deadly) == [[1], [1, 2]]
    assert call.fatal == {2}


@pytest.mark.parametrize("arguments", [([block(1, 2)], "train"), ("weights", 0, 4)])
def test_work_without_a_client_to_blame_is_given_up(arguments):
    call = Call(arguments, 0)
    together = isinstance(arguments[0], str)

    def deadly(left):
        return together or len(left) == 2  # each alone is fine

    if together:
        assert [call.ended_a_worker() for _ in range(MAX_DEATHS)] == [[call], [call], None]
    else:
        assert played(call, deadly) is None


def test_a_block_of_one_client_has_its_columns():
    alone = block(3, 8, 9).of(8)
    assert (alone.clients, alone.states, alone.weights) == ((8,), ("state 8",), (8.0,))
    assert alone.residuals == alone.budgets == ()
