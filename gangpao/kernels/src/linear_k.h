// Linear layers of K styles: blocks have integer scales, so a superblock of 256 columns is summed in integers,
//   out += d * xs * (sum of scale * dot) - dmin * xs * (sum of minimum * sum of activations),
// and floats come once for a superblock. Activations have one scale for 256 columns here, as in llama.cpp.

// Where the groups of a block's weights are, and how far it is to the next block: in the panel, in the panel with the upper groups
// lifted (unpack.h), or unpacked.
template <Values V>
struct InPanel {
  static constexpr int step = block_bytes(V), rest_step = rest_bytes(V), lift = 0;
  template <int G> static B get(Block q) { return group_bytes<V, G>(q); }
};
template <Values V>
struct InPanelLifted {
  static constexpr int step = block_bytes(V), rest_step = rest_bytes(V), lift = lift_of(V);
  template <int G> static B get(Block q) { return lifted_bytes<V, G>(q); }
};
template <Values V>
struct Unpacked {
  static constexpr int step = kBlock * kPanelRows, rest_step = 0, lift = 0;
  template <int G> static B get(Block q) { return bload(q.q + 64 * G); }
};

// A header that was read before: pairs of scales and minima [superblock][8][16], d and dmin [superblock][2][16].
template <Style S>
struct KeptHeader {
  const int32_t *pairs_of_scales, *pairs_of_minima;
  const float* floats;
  KeptHeader(const Scratch& u, int s)
      : pairs_of_scales(u.scales() + size_t(s) * 128), pairs_of_minima(u.minima() + size_t(s) * 128), floats(u.d + size_t(s) * 32) {}
  I scales(int i) const { return iload(pairs_of_scales + 16 * i); }
  I minima(int i) const { return iload(pairs_of_minima + 16 * i); }
  F d() const { return fload(floats); }
  F dmin() const { return fload(floats + 16); }
};

// T tokens' quantized activations from one superblock on.
struct Tokens {
  const int8_t* q;
  int stride;
  const float* scale;
  const int16_t* sums;
  template <Style S> int32_t sum_pair(int t, int i) const {
    int32_t x;
    std::memcpy(&x, sums + t * kSums + (halves(S) ? 0 : kSumsOfBlocks) + 2 * i, 4);
    return x;
  }
};

static inline Tokens tokens_at(const Quants& x, int s, int token) {
  size_t at = size_t(s) * x.token_stride + token;
  return {x.q + size_t(token) * x.q_stride + size_t(s) * kSuperColumns, x.q_stride, x.scale + at, x.sums + at * kSums};
}

template <class FROM, Values V, int T>
struct Sums {
  Sum<V, 0> low[T];
  Sum<V, FROM::lift> high[T];  // of the lifted groups 4..7
  void start() {
    for (int t = 0; t < T; ++t) low[t].start(), high[t].start();
  }
  I total(int t) const {
    if constexpr (FROM::lift > 0) return iadd(low[t].total, ishift(high[t].total, FROM::lift));
    else return low[t].total;
  }
};

// Groups G .. END of a block; the first is group K of the N that have this scale.
template <class FROM, Values V, int T, int G, int END, int K, int N, class Scale>
static inline void add_groups(Block q, const Tokens& x, int column, Scale scale, Sums<FROM, V, T>& sums) {
  if constexpr (G < END) {
    B w = FROM::template get<G>(q);
    for (int t = 0; t < T; ++t) {
      const int8_t* four = x.q + size_t(t) * x.stride + column + 4 * G;
      if constexpr (FROM::lift > 0 && G >= 4) sums.high[t].template group<K, N>(w, four, scale);
      else sums.low[t].template group<K, N>(w, four, scale);
    }
    add_groups<FROM, V, T, G + 1, END, K + 1, N>(q, x, column, scale, sums);
  }
}

// So many blocks further.
template <class FROM>
static inline Block on(Block q, int n) {
  if constexpr (FROM::rest_step > 0) return {q.q + n * FROM::step, q.rest + n * FROM::rest_step};
  else return {q.q + n * FROM::step, nullptr};
}

// What pair i of a superblock's scales belongs to: two blocks, or the halves of one.
template <class FROM, Values V, Style S, int T, class Header, class Ask>
static inline void add_pair(const Header& h, int i, Block q, const Tokens& x, Ask ask, Sums<FROM, V, T>& sums) {
  if constexpr (halves(S)) {
    I scales = h.scales(i);
    ask(q);
    add_groups<FROM, V, T, 0, 4, 0, 4>(q, x, i * kBlock, firsts(scales), sums);
    add_groups<FROM, V, T, 4, 8, 0, 4>(q, x, i * kBlock, seconds(scales), sums);
    return;
  }
  Block next = on<FROM>(q, 1);
  int column = 2 * i * kBlock;
  ask(q);
  if constexpr (S == Style::K256) {
    constexpr int n = FROM::lift > 0 ? 8 : 16, upper = n - 8;  // lifted groups have sums of their own
    add_groups<FROM, V, T, 0, 4, 0, n>(q, x, column, One(), sums);
    add_groups<FROM, V, T, 4, 8, upper / 2, n>(q, x, column, One(), sums);
    ask(next);
    add_groups<FROM, V, T, 0, 4, upper ? 8 : 4, n>(next, x, column + kBlock, One(), sums);
    add_groups<FROM, V, T, 4, 8, upper ? 12 : 4, n>(next, x, column + kBlock, One(), sums);
  } else {
    I scales = h.scales(i);
    add_groups<FROM, V, T, 0, 8, 0, 8>(q, x, column, firsts(scales), sums);
    ask(next);
    add_groups<FROM, V, T, 0, 8, 0, 8>(next, x, column + kBlock, seconds(scales), sums);
  }
}

// The float step of one superblock and token. below: minima, or scales where a zero point stands for them, times sums of activations.
template <Style S, class Header>
static inline F super_step(F acc, I total, I below, const Header& h, float scale) {
  F xs = fset(scale);
  acc = fma(tofloat(total), mul(h.d(), xs), acc);
  if constexpr (has_min(S)) acc = fnma(tofloat(below), mul(h.dmin(), xs), acc);
  return acc;
}

// acc[p][t] += one superblock of P panels times T tokens, block after block of all panels: memory is read fastest from several places
// at a time. ask(q) may ask for memory behind block q.
template <class FROM, Values V, Style S, int T, int P, class Header, class Ask>
static inline void add_superblock(const Header* h, const Block* first, int zero, const Tokens& x, Ask ask, F (*acc)[T]) {
  constexpr bool zeros = needs_zero(V) && (S == Style::K16 || S == Style::K32);
  constexpr int pairs = halves(S) ? kSuper : kSuper / 2;
  Sums<FROM, V, T> sums[P];
  I below[P][T];
  for (int p = 0; p < P; ++p) {
    sums[p].start();
    for (int t = 0; t < T; ++t) below[p][t] = izero();
  }
  auto add_below = [&](int p, int i, I low) {
    for (int t = 0; t < T; ++t) below[p][t] = add_pairs(below[p][t], low, x.template sum_pair<S>(t, i));
  };
  for (int i = 0; i < pairs; ++i)
    for (int p = 0; p < P; ++p) {
      add_pair<FROM, V, S, T>(h[p], i, on<FROM>(first[p], i * (kSuper / pairs)), x, ask, sums[p]);
      if constexpr (zeros) add_below(p, i, h[p].scales(i));
      if constexpr (S == Style::K16_MIN) add_below(p, i, h[p].minima(i));
    }
  for (int p = 0; p < P; ++p) {
    if constexpr (S == Style::K) {  // unrolled, because odd pairs have their upper bits elsewhere than even ones
#pragma GCC unroll 4
      for (int i = 0; i < pairs; ++i) add_below(p, i, h[p].minima(i));
    }
    for (int t = 0; t < T; ++t) {
      I total = sums[p].total(t);
      if constexpr (zeros) total = iadd(total, imul(below[p][t], iset(-zero)));
      if constexpr (S == Style::K256) total = iadd(total, iset(-zero * x.sums[t * kSums + kSumOfAll]));
      acc[p][t] = super_step<S>(acc[p][t], total, below[p][t], h[p], x.scale[t]);
    }
  }
}

// One token is all about the number of instructions, so weights stay lifted; with more of them, unpacking is shared.
template <Values V, Style S, int T, int P>
static void k_panel_few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int panel, int token) {
  using From = std::conditional_t<T == 1, InPanelLifted<V>, InPanel<V>>;
  constexpr int step = header_bytes(S, kSuper) + kSuper * block_bytes(V);
  const Block begin = panel_of<V>(w, panel);
  const int head = panel_head_bytes(S, w.cols / kBlock);
  F acc[P][T];
  for (int p = 0; p < P; ++p)
    for (int t = 0; t < T; ++t) acc[p][t] = fzero();
  auto ask = [ahead](Block q) __attribute__((always_inline)) { prefetch_block<V>(q, ahead); };
  for (int s = 0; s < w.cols / kSuperColumns; ++s) {
    KHeader<S> h[P];
    Block q[P];
    for (int p = 0; p < P; ++p) {
      const uint8_t *one = begin.q + size_t(p) * w.panel_stride, *header = one + head + size_t(s) * step;
      q[p] = {header + header_bytes(S, kSuper), nullptr};
      if constexpr (is_split(V)) q[p].rest = begin.rest + size_t(p) * w.rest_stride + size_t(s) * kSuper * rest_bytes(V);
      h[p] = KHeader<S>(one, s, header);
      prefetch_weights<header_bytes(S, kSuper)>(header, ahead);
    }
    add_superblock<From, V, S, T, P>(h, q, w.format.zero, tokens_at(a.supers, s, token), ask, acc);
  }
  for (int p = 0; p < P; ++p)
    for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel + p, token + t, acc[p][t]);
}

// What one superblock's header says, for all tokens.
template <Style S>
static inline void unpack_header(const KHeader<S>& h, const Scratch& to, int s) {
  for (int i = 0; i < KHeader<S>::pairs; ++i) {
    istore(to.scales() + size_t(s) * 128 + 16 * i, h.scales(i));
    if constexpr (has_min(S)) istore(to.minima() + size_t(s) * 128 + 16 * i, h.minima(i));
  }
  fstore(to.d + size_t(s) * 32, h.d());
  if constexpr (has_min(S)) fstore(to.d + size_t(s) * 32 + 16, h.dmin());
}

template <Values V, Style S>
static void k_unpack_panel(const Packed& w, int panel, const Scratch& to) {
  Block p = panel_of<V>(w, panel);
  const uint8_t* begin = p.q;
  p.q += panel_head_bytes(S, w.cols / kBlock);
  uint8_t* bytes = to.bytes;
  for (int s = 0; s < w.cols / kSuperColumns; ++s) {
    KHeader<S> h(begin, s, p.q);
    p.q += header_bytes(S, kSuper);
    unpack_header<S>(h, to, s);
    for (int b = 0; b < kSuper; ++b, p = blocks_on<V>(p, 1), bytes += Unpacked<V>::step) unpack_groups<V, 0>(p, bytes, 0);
  }
}

template <Values V, Style S, int T>
static void k_tile_many(const Packed& w, const Scratch& u, const Acts& a, const Out& out, int panel, int token) {
  F acc[1][T];
  for (int t = 0; t < T; ++t) acc[0][t] = fzero();
  Block q{u.bytes, nullptr};
  for (int s = 0; s < w.cols / kSuperColumns; ++s, q.q += kSuper * Unpacked<V>::step) {
    KeptHeader<S> h(u, s);
    add_superblock<Unpacked<V>, V, S, T, 1>(&h, &q, w.format.zero, tokens_at(a.supers, s, token), [](Block) {}, acc);
  }
  for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel, token + t, acc[0][t]);
}
