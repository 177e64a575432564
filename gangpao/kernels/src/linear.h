// Quantized linear layers: out[token, row] = sum over blocks of scale * activation scale * integer dot product.
//
// Integers are exact and the float steps come in one order, block after block, so every path (few tokens, many tokens, AMX
// tiles, any instruction set, any number of threads) gives the same bits.
// Few tokens: each panel is read once from memory and unpacked in registers. Many tokens: a panel is unpacked once into a
// scratch buffer in the cache, and tiles of tokens run over it.
// This file has what all quantized styles share, and the F16 styles: one float step for a block. linear_k.h has the K styles.

constexpr int kFewTokens = 8;

static inline void store_lanes(float* p, F y, int lanes) {
  if (lanes >= kPanelRows) return fstore(p, y);
  float t[16];
  fstore(t, y);
  for (int i = 0; i < lanes; ++i) p[i] = t[i];
}

static inline void finish(const Packed& w, const Out& out, int panel, int token, F y) {
  int row = panel * kPanelRows, lanes = w.rows - row;
  float* p = out.data + size_t(token) * out.stride + row;
  if (w.bias) y = add(y, fload(w.bias + row));  // bias is padded to whole panels
  if (out.add) {
    F old = fzero();
    if (lanes >= kPanelRows) {
      old = fload(p);
    } else {
      float t[16] = {};
      for (int i = 0; i < lanes; ++i) t[i] = p[i];
      old = fload(t);
    }
    y = fma(fset(out.scale), y, old);
  }
  store_lanes(p, y, lanes);
}

// Groups G0 .. G1 of a block against T tokens.
template <Values V, int T, int G0, int G1, int FIRST = G0>
static inline void dot_groups(Block q, const int8_t* const* x, int offset, Dot<V>* dot) {
  if constexpr (G0 < G1) {
    B w = group_bytes<V, G0>(q);
    for (int t = 0; t < T; ++t) dot[t].template group<G0 - FIRST>(w, x[t] + offset + 4 * G0);
    dot_groups<V, T, G0 + 1, G1, FIRST>(q, x, offset, dot);
  }
}

// Always inline: to g++ a function that only asks for memory has no effect, and a call of it can go.
template <int BYTES>
[[gnu::always_inline]] static inline void prefetch_weights(const uint8_t* p, Ahead ahead) {
  if (ahead.l2)
    for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(p + ahead.l2 + i, 0, 2);
  if (ahead.l1)
    for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(p + ahead.l1 + i);
}

template <Values V>
[[gnu::always_inline]] static inline void prefetch_block(Block b, Ahead ahead) {
  prefetch_weights<block_bytes(V)>(b.q, ahead);
  if constexpr (is_split(V)) prefetch_weights<rest_bytes(V)>(b.rest, ahead);
}

// Where a panel begins.
template <Values V>
static inline Block panel_of(const Packed& w, int panel) {
  return {w.data + size_t(panel) * w.panel_stride, is_split(V) ? w.rest + size_t(panel) * w.rest_stride : nullptr};
}

// P panels with T tokens, block after block of all panels: memory is read fastest from several places at a time.
template <Values V, Style S, int T, int P>
static void panel_few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int panel, int token) {
  Block q = panel_of<V>(w, panel);
  const int8_t* x[T];
  F acc[P][T];
  for (int t = 0; t < T; ++t) {
    x[t] = a.blocks.q + size_t(token + t) * a.blocks.q_stride;
    for (int p = 0; p < P; ++p) acc[p][t] = fzero();
  }
  int blocks = w.cols / kBlock;
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = blocks - b0 < kSuper ? blocks - b0 : kSuper;
    const uint8_t* headers = q.q;
    for (int p = 0; p < P; ++p) prefetch_weights<header_bytes(S, kSuper)>(q.q + p * w.panel_stride, ahead);
    q.q += header_bytes(S, n);
    for (int b = 0; b < n; ++b, q = blocks_on<V>(q, 1)) {
      size_t at = size_t(b0 + b) * a.blocks.token_stride + token;
      for (int p = 0; p < P; ++p) {
        Header<S> header{headers + p * w.panel_stride};
        Block block{q.q + p * w.panel_stride, is_split(V) ? q.rest + p * w.rest_stride : nullptr};
        prefetch_block<V>(block, ahead);
        Dot<V> dot[T];
        for (int t = 0; t < T; ++t) dot[t].start(a.blocks.isum[at + t], w.format.zero);
        dot_groups<V, T, 0, 8>(block, x, (b0 + b) * kBlock, dot);
        F scale = header.scale(b);
        for (int t = 0; t < T; ++t) {
          acc[p][t] = fma(tofloat(dot[t].total()), mul(scale, fset(a.blocks.scale[at + t])), acc[p][t]);
          if constexpr (has_min(S)) acc[p][t] = fnma(header.min(b), fset(a.blocks.sum[at + t]), acc[p][t]);
        }
      }
    }
  }
  for (int p = 0; p < P; ++p)
    for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel + p, token + t, acc[p][t]);
}

// --- many tokens -------------------------------------------------------------------------------------------------

// A panel unpacked. F16 styles: bytes [block][8 groups][64], scale and min [block][16]. K styles: bytes as well, pairs of integer
// scales and of minima [superblock][8][16] and d, dmin [superblock][2][16]; on AMX [superblock][2 planes] of bytes.
struct Scratch {
  uint8_t* bytes;
  float *scale, *min, *d;
  Scratch(uint8_t* memory, int cols) : bytes(memory) {
    scale = reinterpret_cast<float*>(memory + size_t(cols) * kPanelRows * 2);
    min = scale + cols;
    d = min + cols / 2;
  }
  int32_t* scales() const { return reinterpret_cast<int32_t*>(scale); }
  int32_t* minima() const { return reinterpret_cast<int32_t*>(min); }
  static size_t size(int cols) { return size_t(cols) * (kPanelRows * 2 + 8); }  // a multiple of 64
};

template <Values V, int G>
static inline void unpack_groups(Block q, uint8_t* to, int minus) {
  if constexpr (G < 8) {
    B w = group_bytes<V, G>(q);
    bstore(to + 64 * G, minus ? bsub(w, uint8_t(minus)) : w);
    unpack_groups<V, G + 1>(q, to, minus);
  }
}

// `minus` is taken off every byte (AMX multiplies signed bytes and so needs no zero point).
template <Values V, Style S>
static void unpack_panel(const Packed& w, int panel, const Scratch& to, int minus) {
  Block p = panel_of<V>(w, panel);
  int blocks = w.cols / kBlock;
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = blocks - b0 < kSuper ? blocks - b0 : kSuper;
    Header<S> header{p.q};
    p.q += header_bytes(S, n);
    for (int b = 0; b < n; ++b, p = blocks_on<V>(p, 1)) {
      unpack_groups<V, 0>(p, to.bytes + size_t(b0 + b) * 512, minus);
      fstore(to.scale + size_t(b0 + b) * 16, header.scale(b));
      if constexpr (has_min(S)) fstore(to.min + size_t(b0 + b) * 16, header.min(b));
    }
  }
}

template <Values V, int T, int G0, int G1, int FIRST = G0>
static inline void dot_unpacked(const uint8_t* q, const int8_t* x, int stride, Dot<V>* dot) {
  if constexpr (G0 < G1) {
    B w = bload(q + 64 * G0);
    for (int t = 0; t < T; ++t) dot[t].template group<G0 - FIRST>(w, x + size_t(t) * stride + 4 * G0);
    dot_unpacked<V, T, G0 + 1, G1, FIRST>(q, x, stride, dot);
  }
}

// T tokens against an unpacked panel. Rows of tokens past a.n exist (buffers are padded) and are not stored.
template <Values V, Style S, int T>
static void tile_many(const Packed& w, const Scratch& u, const Acts& a, const Out& out, int panel, int token) {
  F acc[T];
  for (int t = 0; t < T; ++t) acc[t] = fzero();
  const int8_t* x = a.blocks.q + size_t(token) * a.blocks.q_stride;
  for (int b = 0; b < w.cols / kBlock; ++b, x += kBlock) {
    size_t at = size_t(b) * a.blocks.token_stride + token;
    Dot<V> dot[T];
    for (int t = 0; t < T; ++t) dot[t].start(a.blocks.isum[at + t], w.format.zero);
    dot_unpacked<V, T, 0, 8>(u.bytes + size_t(b) * 512, x, a.blocks.q_stride, dot);
    F scale = fload(u.scale + size_t(b) * 16);
    for (int t = 0; t < T; ++t) {
      acc[t] = fma(tofloat(dot[t].total()), mul(scale, fset(a.blocks.scale[at + t])), acc[t]);
      if constexpr (has_min(S)) acc[t] = fnma(fload(u.min + size_t(b) * 16), fset(a.blocks.sum[at + t]), acc[t]);
    }
  }
  for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel, token + t, acc[t]);
}
