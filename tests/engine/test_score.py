"""Endings scored in company have the log-probabilities that they have alone, to the last bit, whatever is shared."""

import random

import pytest

from gangpao.engine.cache import PAGE
from gangpao.engine.sample import logprobs_of
from gangpao.engine.score import EndingScore, Scorer
from gangpao.engine.transformer import CHUNK


def alone(engine, context, ending) -> EndingScore:
    ids = [*context, *ending[:-1]]
    rows = engine.model.forward(ids, engine.model.new_cache(engine.context), all_logits=True)
    found = [logprobs_of(row, i, 0) for row, i in zip(rows[len(context) - 1 :], ending, strict=False)]
    return EndingScore(tuple(one.logprob for one in found), all(one.rank == 1 for one in found))


def items_of(rng, count, heads=3):
    """Contexts with a few common heads, of all lengths, with endings of which some are one token and some are equal."""
    made = []
    begins = [[rng.randrange(256) for _ in range(rng.choice([0, 20, PAGE, 3 * PAGE + 5]))] for _ in range(heads)]
    for _ in range(count):
        context = rng.choice(begins) + [rng.randrange(256) for _ in range(rng.choice([1, 2, 30, PAGE, 90]))]
        endings = [
            [rng.randrange(256) for _ in range(rng.choice([1, 1, 2, 9, 70]))] for _ in range(rng.choice([1, 2, 4]))
        ]
        made.append((context, [*endings, endings[0]] if rng.random() < 0.3 else endings))
    return made


def scores(engine, items, **options):
    return dict(Scorer(engine, **options).score(items))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["as they come", "sorted", "backwards"])
def test_every_company_gives_the_same_scores(engine, seed, order):
    items = items_of(random.Random(seed), 14)
    items = {"as they come": items, "sorted": sorted(items), "backwards": sorted(items)[::-1]}[order]
    found = scores(engine, items, pool_tokens=1 if seed % 2 else 8192)
    assert sorted(found) == list(range(len(items)))
    for number, (context, endings) in enumerate(items):
        assert found[number] == [alone(engine, context, ending) for ending in endings]


def test_a_context_is_read_once_and_a_head_once(engine):
    head = [i % 251 for i in range(4 * PAGE)]
    scorer = Scorer(engine)
    items = [([*head, i, i + 1], [[1, 2, 3], [4], [5, 6]]) for i in range(6)]
    dict(scorer.score(items))
    # The head once, then of each item two tokens of the context and all but the last token of each ending.
    assert scorer.stats.computed == len(head) + 6 * (2 + 2 + 0 + 1)
    assert scorer.stats.cached == 5 * len(head)
    before = scorer.stats.computed
    dict(scorer.score(items[:1]))  # what is in front of the last page is still there
    assert scorer.stats.computed - before <= PAGE + 3


def test_steps_are_full(engine):
    scorer = Scorer(engine)
    items = [([i, *range(39)], [[1, 2]]) for i in range(60)]
    dict(scorer.score(items))
    assert scorer.stats.computed == 60 * 41
    assert scorer.stats.steps <= 60 * 41 // CHUNK + 2


def test_memory_is_the_pool_s_however_many_items(engine):
    scorer = Scorer(engine, pool_tokens=1024)
    pool = scorer._pool
    for _, _found in scorer.score(([i % 256, i // 256, *range(60)], [[7], [8, 9]]) for i in range(800)):
        assert pool.pages_used <= pool.pages
    assert pool.pages_used == pool.pages_kept  # nothing is held for an item that is done


def test_a_whole_context_fits(engine):
    context = [i % 256 for i in range(engine.context - 9)]
    items = [(context, [[1] * 10, [2] * 10, [3] * 10])] * 2
    found = scores(engine, items, pool_tokens=1)
    assert found[0] == found[1] == [alone(engine, context, ending[:10]) for ending in items[0][1]]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (([], [[1]]), "no tokens"), (([1], []), "no tokens"), (([1], [[1], []]), "no tokens"),
        (([1] * 510, [[1], [1, 2, 3, 4]]), "513 tokens do not fit into the context of 512"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_named(engine, item, words):
    with pytest.raises(ValueError, match=rf"item 1: .*{words}"):
        scores(engine, [([1], [[2]]), item])
