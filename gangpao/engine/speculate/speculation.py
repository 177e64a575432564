"""What the answers of an engine share for speculation, and the gate: who proposes how many tokens for the next step.

    Speculation    costs of rows, chances of guesses, pools, the draft model; begin() an answer
    Speculator     of one answer: propose() tokens for the next step, learn() how many were right, close()
    verify         the check of what was proposed

The gate asks which choice says most tokens in the time it takes. A step of so many rows costs what it was seen to cost
(StepCosts); a guess is right as often as guesses of its kind were (chances.py), and worth something only if all before it are
right, too. Where other answers or a prompt share the step, a row more costs less of it, and a token is one of several.

A wrong belief cannot cost much: what proposals cost is weighed against what they saved, and an answer risks no more than that and a
small part of its time. As small a part goes into trying what is not believed to pay.
"""

import contextlib
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gangpao.engine.cache import KVCache
from gangpao.engine.sample import Logits, Sampler
from gangpao.engine.speculate.chances import Chances, Count
from gangpao.engine.speculate.drafters import FREE, LONGEST, Drafter, Guess, Price, PricedDrafter, kind_of
from gangpao.engine.speculate.pool import PoolDrafter, Pools

MAX_DRAFT = 15  # with the last id as many rows as have logits at once
MARGIN = 0.03  # of its speed that a step has to gain: beliefs are rough
LOSS = 0.01  # of an answer's steps that may be lost
FIRST_LOSS = 1.0  # steps that an answer may lose at once
MOST_DEBT = 0.5  # steps beyond that, on guesses that are mostly right
MOST_CREDIT = 4.0  # steps of what was saved that may be lost again
TRIES = 0.5  # steps that may be spent at once on trying what is not believed to pay
HOPELESS = 0.02  # a chance that is not looked beyond
RECALIBRATE = 96  # steps without one of a single row, after which one is made to see what it takes
FURTHER = 128  # tokens that an answer is believed to have at least, when a draft model has to catch up with it
INVESTED = 0.05  # of the steps of those tokens, or of the answer so far, that catching up may take
TRY, NOTHING = 0.0, -1.0  # rates of plans that are not believed to pay


PRIOR = 0.3  # of a step, for each row more
PRIOR_COUNT = 2  # samples that the first belief counts for
LEAST_SLOPE = 0.15  # of a row beyond those that were measured
SAMPLES = 15  # of each number of rows, the newest
PLAIN_SAMPLES = 9
MOST_ROWS = 64
SIZES = (3, 2)  # tokens that have to be the same, longest first
READ = 2048  # tokens that are looked through in one step at most, a millisecond or two: a long prompt must not hold up the others
LOST = 4  # tokens behind the end of a stretch after which its source is given up


# --- what rows cost, and guesses from the text itself


class StepCosts:
    """What a step of so many rows costs here, as a multiple of a step of one row.

    It depends on the model, its weight types, the kernels, the threads and the neighbours of the machine, so it is measured:
    every step without a prompt in it is a sample. A sample is compared with the steps of one row around it, so that a machine that
    becomes slower for a while does not look like dear rows; medians keep single bad moments out. Where nothing was measured yet, a
    row costs PRIOR of a step, which is more than most machines take.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=PLAIN_SAMPLES)  # seconds of a step of one row, lately
        self._ratios: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {1: 1.0}
        self.since_plain = 0  # steps

    @property
    def plain_s(self) -> float:
        """Seconds of a step of one row; 0 before the first."""
        return statistics.median(self._plain) if self._plain else 0.0

    def take(self, rows: int, seconds: float) -> None:
        """A step of that many rows, each of which had its logits."""
        if rows == 1:
            self._plain.append(seconds)
            self.since_plain = 0
            return
        self.since_plain += 1
        if not self._plain or rows > MOST_ROWS or seconds <= 0:
            return
        ratios = self._ratios.setdefault(rows, deque(maxlen=SAMPLES))
        ratios.append(seconds / self.plain_s)
        guess = self._unmeasured(rows, without=rows)
        self._known[rows] = max(1.0, statistics.median([*ratios, *[guess] * PRIOR_COUNT]))
        if len(ratios) > SAMPLES // 2:  # steps of one row may be rare: the machine's pace is seen in others, too
            self._plain.append(seconds / self._known[rows])

    def of(self, rows: int) -> float:
        """Steps of one row that a step of `rows` costs; never less for more rows."""
        found = self._known.get(rows) or self._unmeasured(rows)
        return max([found, *(cost for n, cost in self._known.items() if n < rows)])

    def measured(self) -> dict[int, float]:
        """What was measured so far: rows -> steps of one row."""
        return {rows: self.of(rows) for rows in sorted(self._known)}

    def _unmeasured(self, rows: int, without: int = 0) -> float:
        """From the nearest that were measured below and above; beyond them as the slope up to there says."""
        known = {n: cost for n, cost in self._known.items() if n != without}
        below = max(n for n in known if n <= rows)
        above = min((n for n in known if n >= rows), default=0)
        if below == rows:
            return known[rows]
        if above:
            share = (rows - below) / (above - below)
            return known[below] + share * (max(known[above], known[below]) - known[below])
        slope = (known[below] - 1) / (below - 1) if below > 1 else PRIOR
        return known[below] + max(slope, LEAST_SLOPE) * (rows - below)


class TextDrafter:
    """What followed the last time the same words were there.

    Code, edits and answers that quote their question repeat stretches of what stands before. The last three tokens (or two) are
    looked up in an index of the text so far, and what followed them is guessed. The longer the stretch that is the same, the
    likelier it goes on; its length is the kind of the guess. Where an edit leaves its source, one token usually takes the place of
    another: for a few tokens behind such a place the guess goes on in the source as if that had happened, until the index finds the
    text again. What it gives up: of several earlier places only the last is looked at.

    Cheap: a dictionary lookup a token. ids are looked through only when guesses are asked for.
    """

    name = "text"

    def __init__(self, ids: Sequence[int], vocab_size: int | None = None) -> None:
        self._vocab_size = vocab_size
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = min(SIZES)
        self._known = len(ids)  # when it was last asked
        self._source: tuple[int, int] | None = None  # a place, and the length of the text that it goes on from

    def seconds(self, ids: Sequence[int]) -> Price:
        return FREE

    def close(self, ids: Sequence[int]) -> None:
        self._seen.clear()

    def guesses(self, ids: Sequence[int]) -> Generator[Guess, None, None]:
        # Not the newest ids: a place right before the end has little behind it that could be guessed.
        self._index(ids, self._known)
        self._known = len(ids)
        at = self._find(ids)
        if at is not None:
            self._source = at, len(ids)
            same = _same_before(ids, at)
            kinds: Iterator[str] = (kind_of(self.name, same + i) for i in itertools.count())
        elif self._source is not None and 0 < len(ids) - self._source[1] <= LOST:
            at = self._source[0] + len(ids) - self._source[1]
            kinds = (f"{self.name} behind an edit" if i == 0 else kind_of(self.name, 2 + i) for i in itertools.count())
        else:
            self._source = None
            return
        for token, kind in zip(ids[at : len(ids)], kinds, strict=False):
            if self._vocab_size is not None and token >= self._vocab_size:
                return  # the row of a picture: no answer goes on with one
            yield Guess(token, kind)

    def _find(self, ids: Sequence[int]) -> int | None:
        """Where the text goes on behind the last earlier place that ends like this one."""
        for size in SIZES:
            at = self._seen.get(tuple(ids[-size:]))
            if at is not None and len(ids) > size:
                return at
        return None

    def _index(self, ids: Sequence[int], until: int) -> None:
        """Note for every short run of tokens before `until` where it was last followed by something; READ of them a time."""
        stop = min(until, self._indexed + READ)
        for end in range(self._indexed, stop):
            for size in SIZES:
                if end >= size:
                    self._seen[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, stop)


def _same_before(ids: Sequence[int], at: int) -> int:
    """How many tokens before `at` are the last ones of ids, LONGEST at most."""
    end, most = len(ids), min(at, LONGEST)
    return next((n for n in range(most) if ids[at - 1 - n] != ids[end - 1 - n]), most)


# --- the gate


@dataclass(frozen=True, slots=True)
class Company:
    """Whom a step is shared with: rows in it without proposals, and answers that say a token in it, this one included."""

    rows: int = 1
    tokens: int = 1


ALONE = Company()


class Draft(Protocol):
    """What drafts for all answers of an engine beside their texts: a small model, or a draft head."""

    name: str
    guesses_made: int  # ever, each of which took `seconds(...).first`

    @property
    def nbytes(self) -> int: ...

    def drafter(self, sampler: Sampler, cache: Callable[[], KVCache | None]) -> PricedDrafter:
        """Its guesses for one answer. cache: where the answer's text is now."""

    def seconds(self, ids: Sequence[int], plain_s: float) -> Price:
        """What guesses behind `ids` are going to take. plain_s: of a step of one row."""


def _nowhere() -> None:
    return None


@dataclass(slots=True)
class Speculation:
    """Of an engine."""

    draft: Draft | None = None
    costs: StepCosts = field(default_factory=StepCosts)
    counts: dict[str, Count] = field(default_factory=dict)
    pools: Pools = field(default_factory=Pools)

    def begin(
        self,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        owner: Hashable | None = None,
        cache: Callable[[], KVCache | None] = _nowhere,
    ) -> "Speculator":
        """An answer. owner: whose earlier answers may help it and whom it will help (pool.py); None: nobody's. cache: where its
        text is now, which a draft head reads."""
        drafters: list[Drafter] = [TextDrafter(prompt_ids, sampler.vocab_size)]
        if owner is not None:
            drafters.append(PoolDrafter(self.pools.of(owner), len(prompt_ids)))
        model = self.draft.drafter(sampler, cache) if self.draft is not None else None
        return Speculator(self, drafters, model, len(prompt_ids), lambda ids: self.begin(ids, sampler, owner, cache))


@dataclass(slots=True)
class _Plan:
    """Guesses for a step. rate: tokens in the time of a step of one row; cost: such steps beyond what the step takes anyway."""

    rate: float
    guesses: list[Guess] = field(default_factory=list)
    cost: float = 0.0


class Speculator:
    """See the module."""

    def __init__(
        self,
        shared: Speculation,
        drafters: list[Drafter],
        model: PricedDrafter | None,
        prompt_tokens: int,
        again: Callable[[Sequence[int]], "Speculator"],
    ) -> None:
        self._shared = shared
        self._again = again
        self._costs = shared.costs
        self._chances = Chances(shared.counts)
        self._drafters = drafters
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._known = prompt_tokens  # tokens when it was last asked
        self._balance = 0.0  # steps saved so far
        self._tries = TRIES
        self._budget = FIRST_LOSS  # steps that may be lost now
        self._checked: list[Guess] = []  # what the step under way checks
        self._saves = 1.0  # steps that a right guess of it saves

    def propose(self, ids: Sequence[int], room: int, company: Company = ALONE) -> list[int]:
        """At most `room` tokens that may follow `ids`, to be checked in the next step."""
        said, self._known = len(ids) - self._known, len(ids)
        self._tries = min(TRIES, self._tries + LOSS * said)
        self._checked = []
        most = min(room, MAX_DRAFT)
        if most < 1 or self._recalibrates(company):
            return []
        step = self._costs.of(company.rows)
        self._saves = step / company.tokens
        self._budget = self._balance + FIRST_LOSS + LOSS * (len(ids) - self._prompt_tokens)
        best = max((self._free(drafter, ids, most, company) for drafter in self._drafters), key=lambda plan: plan.rate)
        if self._model is not None and self._costs.plain_s:
            best = self._by_model(self._model, best, ids, most, company)
        if best.rate == TRY:
            self._tries -= best.cost
        self._balance -= best.cost
        self._checked = best.guesses
        return [guess.token for guess in best.guesses]

    def learn(self, right: int) -> None:
        """How many of the tokens proposed last were right."""
        tried = self._checked[: right + 1]  # behind the first wrong one nothing was tried
        for i, guess in enumerate(tried):
            self._chances.learn(guess.kind, i < right)
            if self._model is not None and guess.kind.startswith(self._model.name):
                self._chances.learn(self._model.name, i < right)
        self._balance = min(MOST_CREDIT, self._balance + right * self._saves)
        self._checked = []

    def cut(self, before: Sequence[int], ids: Sequence[int]) -> "Speculator":
        """The text lost a part of its middle and is `ids` now: this one ends with `before`, and another one goes on."""
        self.close(before)
        return self._again(ids)

    def close(self, ids: Sequence[int]) -> None:
        """The answer is over; ids: all of its text."""
        for drafter in [*self._drafters, *([self._model] if self._model else [])]:
            drafter.close(ids)

    def _recalibrates(self, company: Company) -> bool:
        """Whether this step shows what one of a single row takes, because none has for long."""
        return company.rows == 1 and self._costs.since_plain >= RECALIBRATE

    def _free(self, drafter: Drafter, ids: Sequence[int], most: int, company: Company) -> _Plan:
        """As many guesses as say most tokens in the time, of a drafter that takes none itself; or one for a try, or none."""
        guesses: list[Guess] = []
        step = self._costs.of(company.rows)
        best, count, first = company.tokens / step * (1 + MARGIN), 0, 0.0
        for guess, total in self._with_totals(itertools.islice(drafter.guesses(ids), most)):
            guesses.append(guess)
            first = first or total
            cost = self._costs.of(company.rows + len(guesses))
            rate = (company.tokens + total) / cost
            if rate > best and self._affords(cost - step, first):
                best, count = rate, len(guesses)
        if count:
            return _Plan(best, guesses[:count], self._costs.of(company.rows + count) - step)
        price = self._costs.of(company.rows + 1) - step
        if not guesses or company.tokens > 1 or price > self._tries:
            return _Plan(NOTHING)
        return _Plan(TRY, guesses[:1], price)

    def _affords(self, cost: float, chance: float) -> bool:
        """Whether an answer may risk so many steps on guesses of which the first is right with that chance."""
        return cost * (1 - chance) <= self._budget and cost <= self._budget + MOST_DEBT

    def _with_totals(self, guesses: Iterator[Guess]) -> Iterator[tuple[Guess, float]]:
        """Each guess, and how many up to it are going to be right; until there is no hope."""
        chance, total = 1.0, 0.0
        for guess in guesses:
            chance *= self._chances.of(guess.kind)
            total += chance
            yield guess, total
            if chance < HOPELESS:
                return

    # --- guesses that take time themselves

    def _by_model(self, model: PricedDrafter, other: _Plan, ids: Sequence[int], most: int, company: Company) -> _Plan:
        """Guesses of the small model or the head, where they are believed to say more in the time than the other plan."""
        plain_s = model.plain_s = self._costs.plain_s
        ready, first, each = price = Price(*(seconds / plain_s for seconds in model.seconds(ids)))
        further = max(FURTHER, len(ids) - self._prompt_tokens)
        usual = self._chances.of(model.name)
        hoped, chance, total = 0.0, 1.0, 0.0
        for n in range(1, min(most, model.most) + 1):
            chance *= usual
            total += chance
            time_ = self._costs.of(company.rows + n) + first + (n - 1) * each + ready * (1 + total) / further
            hoped = max(hoped, (company.tokens + total) / time_)
        step = self._costs.of(company.rows)
        worth = hoped > max(other.rate, company.tokens / step * (1 + MARGIN))
        if worth and ready <= INVESTED * further and self._affords(first, usual):
            return self._ask(model, ids, most, company, price)
        cost = self._costs.of(company.rows + 1) - step + ready + first
        if other.guesses or company.tokens > 1 or cost > self._tries:
            return other
        self._tries -= cost
        return self._ask(model, ids, 1, company, price._replace(ready=0.0))

    def _ask(self, model: PricedDrafter, ids: Sequence[int], most: int, company: Company, price: Price) -> _Plan:
        """As many guesses as it pays to ask for, and of those as many as it pays to check. price: in steps. Catching up is for the
        answers to come, too, and no loss of this step."""
        ready, first, each = price
        usual = self._chances.of(model.name)
        guesses: list[Guess] = []
        totals, chance, spent = [0.0], 1.0, 0.0
        start, caught_up = time.perf_counter(), 0.0

        def rate(count: int, total: float, more: float = 0.0) -> float:
            return (company.tokens + total) / (self._costs.of(company.rows + count) + spent + more)

        with contextlib.closing(model.guesses(ids)) as source:
            while len(guesses) < most:
                best = max(rate(n, total) for n, total in enumerate(totals))
                if guesses and rate(len(guesses) + 1, totals[-1] + chance * usual, each) < best:
                    break
                guess = next(source, None)
                if ready and not guesses:
                    caught_up = (time.perf_counter() - start) / model.plain_s - (first if guess else 0.0)
                if guess is None:
                    break
                guesses.append(guess)
                chance *= self._chances.of(guess.kind)
                totals.append(totals[-1] + chance)
                spent += each if len(guesses) > 1 else first
        count = max(range(len(totals)), key=lambda n: rate(n, totals[n]))
        took = max(0.0, (time.perf_counter() - start) / model.plain_s - max(0.0, caught_up))
        more = self._costs.of(company.rows + count) - self._costs.of(company.rows)
        return _Plan(rate(count, totals[count]), guesses[:count], took + more)


def verify(rows: Iterable[Logits], drafts: Sequence[int], say: Callable[[Logits], int | None]) -> int:
    """Say a token for each row behind the last id and the drafts, for as long as they were right; how many were.

    say(logits) chooses a token, takes it into the answer and returns it, or None when that ended the answer.
    """
    for right, logits in enumerate(rows):
        token = say(logits)
        if token is None or right == len(drafts) or token != drafts[right]:
            return right
    return 0
