// Linear layers of K styles: blocks have integer scales, so a superblock of 256 columns is summed in integers,
//   out += d * xs * (sum of scale * dot) - dmin * xs * (sum of minimum * sum of activations),
// and floats come once for a superblock. Activations have one scale for 256 columns here, as in llama.cpp.

template <Style S>
static inline I minima(const int32_t* pairs, const int16_t* sums) {
  I m = izero();
  for (int i = 0; i < KHeader<S>::pairs; ++i) {
    int32_t x;
    std::memcpy(&x, sums + (S == Style::K ? 16 : 0) + 2 * i, 4);
    m = add_pairs(m, iload(pairs + 16 * i), x);
  }
  return m;
}

// The float step of one superblock and token.
template <Style S>
static inline F super_step(F acc, I total, F d, F dmin, const int32_t* pairs, const Quants& x, size_t at) {
  F xs = fset(x.scale[at]);
  acc = fma(tofloat(total), mul(d, xs), acc);
  if constexpr (has_min(S)) acc = fnma(tofloat(minima<S>(pairs, x.sums + at * kSums)), mul(dmin, xs), acc);
  return acc;
}

template <Style S>
static inline void store_pairs(const KHeader<S>& h, int32_t* pairs) {
  for (int i = 0; i < KHeader<S>::pairs; ++i) istore(pairs + 16 * i, h.min_pair(i));
}

template <Style S, int T, class BITDOT>
static inline void start_dots(BITDOT* dot, const Quants& x, size_t at, int half, int zero) {
  for (int t = 0; t < T; ++t) dot[t].start(S == Style::K16 ? x.sums[(at + t) * kSums + half] : 0, S == Style::K16 ? zero : 0);
}

template <int BITS, Style S, int T>
static void k_panel_few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int panel, int token) {
  constexpr int parts = KHeader<S>::parts;
  const Quants& in = a.supers;
  const uint8_t* p = w.data + size_t(panel) * w.panel_stride;
  const int8_t* x[T];
  F acc[T];
  for (int t = 0; t < T; ++t) x[t] = in.q + size_t(token + t) * in.q_stride, acc[t] = fzero();
  for (int s = 0; s < w.cols / kSuperColumns; ++s) {
    size_t at = size_t(s) * in.token_stride + token;
    KHeader<S> h{p};
    prefetch_weights<header_bytes(S, kSuper)>(p, ahead);
    p += header_bytes(S, kSuper);
    I total[T];
    for (int t = 0; t < T; ++t) total[t] = izero();
    for (int b = 0; b < kSuper; ++b, p += block_bytes(BITS)) {
      prefetch_weights<block_bytes(BITS)>(p, ahead);
      for (int part = 0; part < parts; ++part) {
        Dot<BITS> dot[T];
        start_dots<S, T>(dot, in, at, 2 * b + part, w.format.zero);
        int offset = s * kSuperColumns + b * kBlock;
        if constexpr (parts == 1) dot_groups<BITS, T, 0, 8>(p, x, offset, dot);
        else if (part == 0) dot_groups<BITS, T, 0, 4>(p, x, offset, dot);
        else dot_groups<BITS, T, 4, 8>(p, x, offset, dot);
        I scale = h.scale(b, part);
        for (int t = 0; t < T; ++t) total[t] = iadd(total[t], imul(dot[t].total(), scale));
      }
    }
    alignas(64) int32_t pairs[8 * 16];
    store_pairs<S>(h, pairs);
    for (int t = 0; t < T; ++t) acc[t] = super_step<S>(acc[t], total[t], h.d(), h.dmin(), pairs, in, at + t);
  }
  for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel, token + t, acc[t]);
}

// What one superblock's header says, for all tokens.
template <Style S>
static inline void unpack_header(const KHeader<S>& h, const Scratch& to, int s) {
  store_pairs<S>(h, to.pairs() + size_t(s) * 128);
  fstore(to.d + size_t(s) * 32, h.d());
  fstore(to.d + size_t(s) * 32 + 16, h.dmin());
}

template <int BITS, Style S>
static void k_unpack_panel(const Packed& w, int panel, const Scratch& to) {
  constexpr int parts = KHeader<S>::parts;
  const uint8_t* p = w.data + size_t(panel) * w.panel_stride;
  for (int s = 0; s < w.cols / kSuperColumns; ++s) {
    KHeader<S> h{p};
    p += header_bytes(S, kSuper);
    unpack_header<S>(h, to, s);
    for (int b = 0; b < kSuper; ++b, p += block_bytes(BITS)) {
      size_t block = size_t(s) * kSuper + b;
      unpack_groups<BITS, 0>(p, to.bytes + block * 512, 0);
      for (int part = 0; part < parts; ++part) istore(to.int_scale() + block * 32 + 16 * part, h.scale(b, part));
    }
  }
}

template <int BITS, Style S, int T>
static void k_tile_many(const Packed& w, const Scratch& u, const Acts& a, const Out& out, int panel, int token) {
  constexpr int parts = KHeader<S>::parts;
  const Quants& in = a.supers;
  F acc[T];
  for (int t = 0; t < T; ++t) acc[t] = fzero();
  const int8_t* x = in.q + size_t(token) * in.q_stride;
  for (int s = 0; s < w.cols / kSuperColumns; ++s) {
    size_t at = size_t(s) * in.token_stride + token;
    I total[T];
    for (int t = 0; t < T; ++t) total[t] = izero();
    for (int b = 0; b < kSuper; ++b, x += kBlock) {
      size_t block = size_t(s) * kSuper + b;
      for (int part = 0; part < parts; ++part) {
        Dot<BITS> dot[T];
        start_dots<S, T>(dot, in, at, 2 * b + part, w.format.zero);
        const uint8_t* q = u.bytes + block * 512;
        if constexpr (parts == 1) dot_unpacked<BITS, T, 0, 8>(q, x, in.q_stride, dot);
        else if (part == 0) dot_unpacked<BITS, T, 0, 4>(q, x, in.q_stride, dot);
        else dot_unpacked<BITS, T, 4, 8>(q, x, in.q_stride, dot);
        I scale = iload(u.int_scale() + block * 32 + 16 * part);
        for (int t = 0; t < T; ++t) total[t] = iadd(total[t], imul(dot[t].total(), scale));
      }
    }
    const float* d = u.d + size_t(s) * 32;
    for (int t = 0; t < T; ++t)
      acc[t] = super_step<S>(acc[t], total[t], fload(d), fload(d + 16), u.pairs() + size_t(s) * 128, in, at + t);
  }
  for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel, token + t, acc[t]);
}
