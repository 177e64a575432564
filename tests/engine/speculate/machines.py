"""A machine on which drafts pay, whatever machine tests run on."""

from gangpao.engine.generate import Engine


def where_drafts_pay(path, draft, *, cheap=0.01, **options):
    """An engine with what drafts for it. cheap: of a step, what a further row takes, and what asking takes."""
    engine = Engine.load(path, context=512, num_threads=1, draft=draft, **options)
    costs = engine.speculation.costs
    for rows in (1, 2, 3, 4, 6, 8, 12, 16):
        for _ in range(20):
            costs.take(rows, 1.0 + cheap * rows)
    costs.take = lambda rows, seconds: None
    costs.since_plain = 0
    engine.speculation.draft._share = cheap
    return engine
