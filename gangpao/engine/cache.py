"""The keys and values of the positions a model has already seen, in pages that sequences share.

A pool is one block of memory cut into pages of 64 positions; how a page is laid out is the kernels' business
(`kernels/src/ops.h`). A sequence is a list of pages and a length. When it ends, its pages stay in a tree by the tokens that
are in them, and the next prompt that begins in the same way starts with those pages instead of computing them; a page that
several look at is copied before one of them writes into it. The longest unused pages go when memory is needed.

A model with recurrent layers keeps a state beside the pages (layers/states.py). It is known at some positions only: a prefix is
shared up to the last of those, and a sequence that is cut may come out shorter than was asked.

Memory is taken from the system page by page as positions are filled, so a large pool costs nothing until it is used.
What it gives up: a remembered prefix is found from its first token on only, and partial pages are compared one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.layers.beside import Beside
from gangpao.engine.layers.kept import KVType, kv_bits
from gangpao.engine.layers.sparse import rule_of
from gangpao.engine.layers.states import StatePool, TextState, slot_bytes, slots_for
from gangpao.engine.rope import Angles
from gangpao.engine.sample import PromptScores, TokenLogprob

PAGE = kernels.PAGE


def page_bytes(config: ModelConfig, dtype: KVType) -> int:
    """Bytes of one page: "f16" has 2 bytes a value, "int8" 1.125, "int4" 0.5625 (layers/kept.py)."""
    return kernels.Cache.page_bytes(
        max(1, config.attention_layers), config.num_key_value_heads, config.head_dim, *kv_bits(config, dtype)
    )


def bytes_needed(config: ModelConfig, capacity: int, dtype: KVType, context: int | None = None) -> int:
    """Bytes of a full cache for that many positions, without making one. context: of each sequence, if there are several."""
    states = slots_for(context or capacity, capacity) * slot_bytes(config.recurrent_layers, config.delta)
    return -(-capacity // PAGE) * page_bytes(config, dtype) + states


class KVCache:
    """One sequence in a pool: `length` positions are filled, at most `capacity` fit. adapters: what it is computed with.

    axes: int64 [3, T], time, row and column of the first T positions, for a model with rope_sections whose prompt has pictures; the
    text behind them goes on at the largest number and one. They must follow from the ids, as remembered prefixes do.
    """

    def __init__(
        self, pool: KVPool, pages: list[int], length: int, adapters: Mix, state: TextState | None = None
    ) -> None:
        self.pool = pool
        self.pages = pages
        self.length = length
        self.adapters = adapters
        self.state = state
        self.axes: npt.NDArray[np.int64] | None = None

    @property
    def capacity(self) -> int:
        """The most positions of a sequence."""
        return self.pool.context

    def reserve(self, tokens: int) -> bool:
        """Make room for that many more positions; False when the context or the pool has none."""
        if self.length + tokens > self.capacity or not self.pool.extend(self, self.length + tokens):
            return False
        return self.state is None or self.state.reserve()

    def positions(self, count: int) -> npt.NDArray[np.int64]:
        """Of the next tokens: [count], or [3, count] where there are axes."""
        plain = np.arange(self.length, self.length + count)
        if self.axes is None:
            return plain
        told = self.axes.shape[1]
        behind = plain[plain >= told] - told + self.axes.max(initial=-1) + 1
        return np.concatenate([self.axes[:, plain[plain < told]], np.tile(behind, (3, 1))], axis=1)

    def advance(self, tokens: int, drafts: int) -> None:
        """Behind a step that filled so many positions, of which the last `drafts` may be taken back."""
        self.length += tokens
        if self.state is not None:
            self.state.advance(tokens, drafts)

    def will_share(self, length: int) -> bool:
        """Whether others that begin with the same `length` ids will be able to go on from there when this one is remembered."""
        return self.state is None or self.state.will_share(length)

    def truncate(self, length: int) -> int:
        """Forget every position from `length` on. Returns how many are left: with a recurrent state it may be fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} positions to {length}")
        if self.state is not None:
            length = self.state.truncate(length)
        self.length = length
        keep = -(-length // PAGE)
        self.pool.free(self.pages[keep:])
        del self.pages[keep:]
        if length % PAGE:
            self.pool.rewritten(self.pages[-1])
        return length

    @property
    def nbytes(self) -> int:
        """Bytes of its pool when full."""
        return self.pool.nbytes


class _Node:
    """A page in the tree: the tokens in it, and what came behind them. Only a whole page has children. states: how many of the
    tokens -> the slot of the recurrent state behind them."""

    __slots__ = ("children", "page", "parent", "scores", "states", "tokens", "used")

    def __init__(self, page: int, tokens: tuple[int, ...], parent: _Node | None) -> None:
        self.page = page
        self.tokens = tokens
        self.parent = parent
        self.used = 0
        self.scores = PromptScores(-1, [])  # of the tokens, where somebody wanted them
        self.children: dict[int, list[_Node]] = {}  # by first token
        self.states: dict[int, int] = {}

    def best(self, tokens: Sequence[int]) -> tuple[_Node | None, int]:
        """The child that agrees with most of `tokens` (at least one), and on how many."""
        found: tuple[_Node | None, int] = None, 0
        for child in self.children.get(tokens[0], ()) if tokens else ():
            same = common(child.tokens, tokens)
            if same > found[1]:
                found = child, same
        return found

    def learn(self, values: list[TokenLogprob | None], alternatives: int) -> None:
        """Remember log-probabilities of the first tokens, unless more are known."""
        if alternatives >= self.scores.alternatives and len(values) >= len(self.scores.values):
            self.scores = PromptScores(alternatives, values)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    # Slices are compared by the interpreter itself: prompts have thousands of ids, and every one that waits is looked at.
    whole = next((at for at in range(0, size, PAGE) if a[at : at + PAGE] != b[at : at + PAGE]), size)
    return next((at for at in range(whole, size) if a[at] != b[at]), size)


class KVPool:
    """Pages for many sequences of at most `context` positions, and the prefixes that are remembered.

    tokens: positions in all, at least one context. angles: the rotary ones it is made for (longrope depends on the context).
    adapters: those of a sequence for which none are named. What one mix of adapters computed is never taken for another. sparse:
    positions that a token looks at in long contexts (layers/sparse.py); 0: all.
    """

    def __init__(
        self, config: ModelConfig, context: int, dtype: KVType, tokens: int, angles: Angles, adapters: Mix = (), sparse: int = 0
    ) -> None:  # fmt: skip
        bits = kv_bits(config, dtype)
        if context < 1:
            raise ValueError(f"a KV cache of {context} positions holds nothing; ask for at least 1")
        self.context = context
        self.dtype = dtype
        self.angles = angles
        self.local_angles: Angles | None = None  # of layers that see a window
        self.beside: Beside | None = None  # of a draft head
        self.adapters = adapters
        self.pages = -(-max(tokens, context) // PAGE)
        kinds = config.layer_types or ("full_attention",) * config.num_hidden_layers
        recurs = [kind == "linear_attention" for kind in kinds]
        # Of each layer, its number among those of its kind.
        self.place_of_layer = [recurs[:i].count(one) for i, one in enumerate(recurs)]
        self.native = kernels.Cache(
            max(1, recurs.count(False)), config.num_key_value_heads, config.head_dim, self.pages, *bits
        )
        self.sparse, self._rule = sparse, rule_of(sparse) if sparse else None
        self._means = kernels.PageMeans(self.native) if sparse else None
        self.states: StatePool | None = None
        if config.delta is not None and any(recurs):
            slots = slots_for(context, tokens)
            self.states = StatePool(recurs.count(True), config.delta, slots, self._forget_state)
        self._users = [0] * self.pages
        self._free = list(range(self.pages - 1, -1, -1))
        self._roots: dict[Mix, _Node] = {}
        self._nodes: dict[int, _Node] = {}  # by page
        self._clock = itertools.count(1)

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        more = (self.states and self.states.native, self._means, self.beside and self.beside.native)
        return int(self.native.nbytes) + sum(one.nbytes for one in more if one)

    @property
    def nbytes_of_page(self) -> int:
        """Bytes of one page."""
        return int(self.native.nbytes) // self.pages

    @property
    def pages_used(self) -> int:
        """Pages that hold something, remembered prefixes included."""
        return self.pages - len(self._free)

    @property
    def pages_kept(self) -> int:
        """Pages that only the memory of prefixes holds, and that go when they are needed."""
        return sum(self._users[page] == 1 for page in self._nodes)

    def new(self, adapters: Mix | None = None) -> KVCache:
        """An empty sequence, to be computed with those adapters; None: with those of the pool."""
        state = TextState(self.states) if self.states else None
        return KVCache(self, [], 0, self.adapters if adapters is None else adapters, state)

    def attend(
        self, qkv: kernels.Array, rows: kernels.Rows, spec: kernels.AttentionSpec, layer: int, result: kernels.Array,
        out: kernels.Activation,
    ) -> None:  # fmt: skip
        """What the rows of q find in a layer that attends, whose keys and values are in the pages."""
        if self._rule is None or self._means is None:
            kernels.attend(qkv, rows, spec, self.native, layer, result, out)
        else:
            kernels.attend_sparse(qkv, rows, spec, self.native, layer, self._means, self._rule, result, out)

    def _root(self, adapters: Mix) -> _Node:
        """Where what is remembered of those adapters begins."""
        return self._roots.get(adapters) or _Node(-1, (), None)

    def fork(self, cache: KVCache) -> KVCache:
        """A sequence that begins with all of another's and goes on by itself; a page is copied when it is written to."""
        for page in cache.pages:
            self._users[page] += 1
        other = KVCache(self, list(cache.pages), cache.length, cache.adapters, cache.state and cache.state.fork())
        other.axes = cache.axes
        return other

    def match_prefix(self, ids: Sequence[int], adapters: Mix | None = None) -> KVCache:
        """A sequence with as much of ids in it as is remembered of the same adapters, but at least one id is left to compute."""
        cache = self.new(adapters)
        node, limit, path = self._root(cache.adapters), len(ids) - 1, list[_Node]()
        while cache.length < limit:
            child, same = node.best(ids[cache.length : min(limit, cache.length + PAGE)])
            if child is None:
                break
            child.used = next(self._clock)
            self._users[child.page] += 1
            cache.pages.append(child.page)
            cache.length += same
            path.append(child)
            if same < PAGE:
                break
            node = child
        if self.states is not None:
            self._match_state(self.states, cache, path)
        return cache

    def _match_state(self, states: StatePool, cache: KVCache, path: list[_Node]) -> None:
        """Cut what was found back to the last position of which the state is remembered."""
        known = (
            (at * PAGE + count, slot)
            for at, node in reversed(list(enumerate(path)))
            for count, slot in sorted(node.states.items(), reverse=True)
            if at * PAGE + count <= cache.length
        )
        position, slot = next(known, (0, None))
        cache.state = TextState(states, position, None if slot is None else states.share(slot))
        cache.truncate(position)

    def match_scores(self, ids: Sequence[int], alternatives: int, adapters: Mix) -> list[TokenLogprob | None]:
        """Log-probabilities of the first ids under those adapters that are remembered with so many alternatives."""
        out: list[TokenLogprob | None] = []
        node = self._root(adapters)
        while len(out) < len(ids):
            child, same = node.best(ids[len(out) : len(out) + PAGE])
            if child is None or child.scores.alternatives < alternatives:
                break
            out += child.scores.values[:same]
            if len(child.scores.values) < PAGE or same < PAGE:
                break
            node = child
        return [value and value.cut(alternatives) for value in out]

    def can_allocate(self, tokens: int) -> bool:
        """Whether pages for that many more positions are free or can be made so."""
        return -(-tokens // PAGE) + 1 <= len(self._free) + self.pages_kept and self.has_state()

    def has_state(self, beside: int = 0) -> bool:
        """Whether there is a recurrent state for one more sequence, when `beside` others have none yet; one is left then."""
        return self.states is None or self.states.free_slots + self.states_kept > 1 + beside

    @property
    def states_kept(self) -> int:
        """Slots that only the memory of prefixes holds, and that go when they are needed."""
        if self.states is None:
            return 0
        users = self.states.users
        return sum(users(slot) == 1 for node in self._nodes.values() for slot in node.states.values())

    def extend(self, cache: KVCache, length: int) -> bool:
        """Pages up to that length, and the one that is written next for this sequence alone."""
        write = cache.length // PAGE
        if write < len(cache.pages) and self._users[cache.pages[write]] > 1 and not self._own(cache, write):
            return False
        while len(cache.pages) * PAGE < length:
            page = self._take()
            if page is None:
                return False
            cache.pages.append(page)
        return True

    def _own(self, cache: KVCache, at: int) -> bool:
        """Give the sequence that page for itself: a copy, or in a full pool the page that only the memory holds beside it."""
        shared, page = cache.pages[at], self._take()
        if page is not None:
            self.native.copy_page(shared, page)
            if self.beside is not None:
                self.beside.copy(shared, page)
            self.free([shared])
            cache.pages[at] = page
            return True
        node = self._nodes.get(shared)
        if node is None or node.children or self._users[shared] > 2:
            return False
        self._drop(node)
        return True

    def free(self, pages: Sequence[int]) -> None:
        """Let go of pages; one that nobody else uses can be taken again."""
        for page in pages:
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)

    def finish(self, cache: KVCache, ids: Sequence[int], scores: PromptScores | None = None) -> None:
        """End a sequence: what it computed of ids is remembered, the rest of its pages are free."""
        self.insert_prefix(cache, ids, scores)
        self.release(cache)

    def release(self, cache: KVCache) -> None:
        """End a sequence of which nothing more is to be remembered."""
        self.free(cache.pages)
        if cache.state is not None:
            cache.state.release()
        cache.pages, cache.length = [], 0

    def insert_prefix(
        self, cache: KVCache, ids: Sequence[int], scores: PromptScores | None = None, *, whole: bool = False
    ) -> None:
        """Remember the ids that are in the cache, of a sequence that may go on; only whole pages of them when `whole`.

        scores: log-probabilities of the first ids, to be remembered with them.
        """
        assert cache.length <= len(ids)
        node = root = self._root(cache.adapters)
        for at in range(0, cache.length, PAGE):
            tokens = tuple(ids[at : min(at + PAGE, cache.length)])
            if whole and len(tokens) < PAGE:
                return
            child, same = node.best(tokens)
            if child is None or same < min(len(child.tokens), len(tokens)):
                child = self._remember(cache.pages[at // PAGE], tokens, node)
                self._roots[cache.adapters] = root
            elif same == len(child.tokens) < len(tokens):
                self._replace(child, cache.pages[at // PAGE], tokens)
            if cache.state is not None:
                self._learn_states(child, cache.state, at)
            if scores is not None:
                child.learn(scores.values[at : at + len(tokens)], scores.alternatives)
            child.used = next(self._clock)
            node = child

    def remembered(self) -> Iterator[tuple[list[int], Mix, list[int]]]:
        """The prefixes that are remembered, as far as they are whole pages: ids, adapters and pages, the newest first."""
        mixes = {id(root): mix for mix, root in self._roots.items()}
        for node in sorted(self._nodes.values(), key=lambda n: -n.used):
            if any(len(c.tokens) == PAGE for found in node.children.values() for c in found) or len(node.tokens) < PAGE:
                continue
            path = [node]
            while (parent := path[-1].parent) is not None:
                path.append(parent)
            root, *nodes = reversed(path)
            yield [i for n in nodes for i in n.tokens], mixes[id(root)], [n.page for n in nodes]

    def _learn_states(self, node: _Node, state: TextState, begin: int) -> None:
        """Remember the states that are known behind tokens of a node, whose first position is `begin`."""
        own = {state.at: state.slot} if state.slot is not None else {}
        for position, slot in (state.snapshots | own).items():
            if begin < position <= begin + len(node.tokens) and position - begin not in node.states:
                node.states[position - begin] = state.pool.share(slot)

    def _forget_state(self) -> bool:
        """Drop the remembered state that was not used for longest; whether there was one that nobody looks at."""
        assert self.states is not None
        users = self.states.users
        found = [(n.used, n, at) for n in self._nodes.values() for at, slot in n.states.items() if users(slot) == 1]
        if not found:
            return False
        _, node, at = min(found, key=lambda one: (one[0], -one[2]))
        self.states.free(node.states.pop(at))
        return True

    def _remember(self, page: int, tokens: tuple[int, ...], parent: _Node) -> _Node:
        node = _Node(page, tokens, parent)
        parent.children.setdefault(tokens[0], []).append(node)
        self._nodes[page] = node
        self._users[page] += 1
        return node

    def _replace(self, node: _Node, page: int, tokens: tuple[int, ...]) -> None:
        """A longer stretch in place of its beginning, which has no children because it was not a whole page."""
        assert not node.children
        if page != node.page:
            del self._nodes[node.page]
            self.free([node.page])
            self._nodes[page] = node
            self._users[page] += 1
            node.page = page
        node.tokens = tokens

    def _take(self) -> int | None:
        if not self._free:
            self._forget()
        if not self._free:
            return None
        page = self._free.pop()
        self._users[page] = 1
        self.rewritten(page)
        if self.beside is not None:
            self.beside.taken(page)
        return page

    def page_for_file(self, page: int) -> npt.NDArray[np.uint8]:
        """The bytes of a page, to be filled from a file."""
        if self.beside is not None:
            self.beside.filled_from_file(page)
        return self.native.page(page)

    def rewritten(self, page: int) -> None:
        """Other keys will stand in that page: what is known of those that do is forgotten."""
        if self._means is not None:
            self._means.forget(page)

    def _forget(self) -> None:
        """Drop the prefixes that were not used for longest, a sixteenth of the pool at a time, ends before beginnings."""
        wanted = max(1, self.pages // 16)
        while wanted > 0:
            ends = [n for n in self._nodes.values() if not n.children and self._users[n.page] == 1]
            if not ends:
                return
            for node in sorted(ends, key=lambda n: n.used)[:wanted]:
                self._drop(node)
                wanted -= 1

    def _drop(self, node: _Node) -> None:
        """Forget a prefix that nothing follows."""
        assert node.parent is not None
        siblings = node.parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.tokens[0]]
            self._roots = {adapters: root for adapters, root in self._roots.items() if root.children}
        del self._nodes[node.page]
        self.free([node.page])
        for slot in node.states.values():
            assert self.states is not None
            self.states.free(slot)
