"""Guesses from the text so far and from earlier answers."""

import itertools

import pytest

from gangpao.engine.speculate.pool import Pool, PoolDrafter, Pools
from gangpao.engine.speculate.speculation import READ, SIZES, TextDrafter


def tokens(drafter, ids, most=10):
    return [guess.token for guess in itertools.islice(drafter.guesses(ids), most)]


def kinds(drafter, ids, most=10):
    return [guess.kind for guess in itertools.islice(drafter.guesses(ids), most)]


def test_a_longer_stretch_that_is_the_same_is_another_kind_of_guess():
    begin = list(range(30))
    assert kinds(TextDrafter([]), [7, 8, 1, 2, 9, 1, 2], 1) == []
    drafter = TextDrafter([*begin, 99, 28, 29])
    ids = [*begin, 50, 51, 52, 99, 3, 4, 5]
    drafter = TextDrafter(ids)
    assert kinds(drafter, ids, 6) == ["text 3", *["text 4-7"] * 4, "text 8-15"]
    ids = [*begin, 50, *begin[:25]]
    assert kinds(TextDrafter(ids), ids, 1) == ["text 16+"]


def test_a_prompt_is_looked_through_only_for_drafts_that_are_due_and_in_parts(monkeypatch):
    read: list[int] = []
    inner = TextDrafter._index

    def index(self, ids, until):
        before = self._indexed
        inner(self, ids, until)
        read.append(self._indexed - before)

    monkeypatch.setattr(TextDrafter, "_index", index)
    ids = [*range(READ + 100), *range(READ + 50, READ + 60)]
    drafter = TextDrafter(ids)
    assert read == []
    assert tokens(drafter, ids) == []  # what would be right stands behind what is read by now
    assert tokens(drafter, ids)[:1] == [READ + 60]
    assert tokens(drafter, ids)[:1] == [READ + 60]
    assert read[0] == READ
    assert sum(read) == len(ids) - min(SIZES)


def test_a_text_that_repeats_itself_is_foreseen_further_than_its_period():
    ids = [5] * 40
    drafter = TextDrafter(ids)
    tokens(drafter, ids)
    ids += [5] * 7
    assert tokens(drafter, ids, 6) == [5] * 6


def test_behind_an_edit_the_source_goes_on():
    """A renamed word: the token in its place was not foreseen, and the one behind it is."""
    source = [*range(100, 140)]
    ids = [*source, 7, *source[:10]]
    drafter = TextDrafter(ids)
    assert tokens(drafter, ids, 3) == source[10:13]
    ids.append(55)  # in place of source[10]
    assert tokens(drafter, ids, 3) == source[11:14]
    assert kinds(drafter, ids, 2) == ["text behind an edit", "text 3"]
    ids += [56, 57, 58, 59]
    assert tokens(drafter, ids) == []  # too long ago


def test_rows_of_pictures_are_no_guesses():
    ids = [1, 2, 3, 4, 500, 501, 1, 2, 3]
    assert tokens(TextDrafter(ids, 300), ids) == [4]


@pytest.mark.parametrize("size", [16, 50, 1000])
def test_a_pool_says_what_followed_and_stays_within_its_bounds(size):
    """Against a search through the last answers, whatever was overwritten."""
    pool, kept = Pool(size), []
    answers = [[(7 * n + i * i) % 5 for i in range(4 + n % 9)] for n in range(60)]
    for answer in answers:
        pool.add(answer)
        kept += [*answer[-size + 1 :], -1]
        kept = kept[-size:]
        assert len(pool) == len(kept)
        for run in itertools.product(range(5), repeat=3):
            places = [i for i in range(3, len(kept)) if tuple(kept[i - 3 : i]) == run and kept[i] >= 0]
            expected = list(itertools.takewhile(lambda t: t >= 0, kept[places[-1] :])) if places else []
            assert list(pool.behind(run)) == expected
    assert len(pool._seen) <= len(kept)


def test_an_answer_longer_than_the_pool_leaves_its_end():
    pool = Pool(10)
    pool.add(list(range(100)))
    assert list(pool.behind([96, 97, 98])) == [99]
    assert list(pool.behind([1, 2, 3])) == []


def test_owners_have_pools_of_their_own_and_the_oldest_goes():
    pools = Pools(most=2)
    pools.of("a").add([1, 2, 3, 4])
    assert list(pools.of("b").behind([1, 2, 3])) == []
    assert list(pools.of("a").behind([1, 2, 3])) == [4]
    pools.of("c")  # b was used longest ago
    assert list(pools.of("a").behind([1, 2, 3])) == [4]
    pools.of("b")
    pools.of("c")
    assert list(pools.of("a").behind([1, 2, 3])) == []


def test_the_answer_goes_into_the_pool_and_the_prompt_does_not():
    pool = Pool()
    drafter = PoolDrafter(pool, begins=4)
    drafter.close([1, 2, 3, 4, 5, 6, 7, 8])
    assert list(pool.behind([1, 2, 3])) == []
    assert tokens(PoolDrafter(pool, 0), [5, 6, 7]) == [8]
