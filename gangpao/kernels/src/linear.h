// Quantized linear layers: out[token, row] = sum over blocks of scale * activation scale * integer dot product.
//
// Integers are exact and the float steps come in one order, block after block, so every path below (few tokens,
// many tokens, AMX tiles, any instruction set, any number of threads) gives the same bits.
// Few tokens: each panel is read once from memory and unpacked in registers. Many tokens: a panel is unpacked once into a
// scratch buffer in the cache, and tiles of tokens run over it.

constexpr int kFewTokens = 8;
// Bytes of weights asked for in advance; on one core 2 KB gave 1.15 x the speed of the hardware prefetcher alone, 8 KB less.
constexpr int kAhead = 2048;

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

// One block into the running sums of T tokens.
template <int BITS, Style S, int T, int G0, int G1>
static inline void dot_groups(const uint8_t* q, const int8_t* const* x, int offset, Dot<BITS>* dot) {
  if constexpr (G0 < G1) {
    B w = group_bytes<BITS, G0>(q);
    for (int t = 0; t < T; ++t) dot[t].template group<(halves(S) ? G0 & 3 : G0)>(w, x[t] + offset + 4 * G0);
    dot_groups<BITS, S, T, G0 + 1, G1>(q, x, offset, dot);
  }
}

template <int BITS, Style S, int T>
static inline void block_few(const uint8_t* q, const Scales& s, const Acts& a, int token, int block,
                             const int8_t* const* x, int zero, F* acc) {
  constexpr int parts = halves(S) ? 2 : 1;
  const float* xs = a.scale + size_t(block) * a.token_stride + token;
  const float* xsum = a.sum + size_t(block) * a.token_stride + token;
  const int32_t* half0 = a.isum + size_t(2 * block) * a.token_stride + token;
  const int32_t* half1 = half0 + a.token_stride;
  for (int h = 0; h < parts; ++h) {
    Dot<BITS> dot[T];
    for (int t = 0; t < T; ++t) dot[t].start(parts == 2 ? (h ? half1 : half0)[t] : half0[t] + half1[t], zero);
    if constexpr (parts == 2) {
      if (h == 0) dot_groups<BITS, S, T, 0, 4>(q, x, block * kBlock, dot);
      else dot_groups<BITS, S, T, 4, 8>(q, x, block * kBlock, dot);
    } else {
      dot_groups<BITS, S, T, 0, 8>(q, x, block * kBlock, dot);
    }
    for (int t = 0; t < T; ++t) {
      acc[t] = fma(tofloat(dot[t].total()), mul(s.scale[h], fset(xs[t])), acc[t]);
      if constexpr (S == Style::K16_MIN) acc[t] = fnma(s.min[h], fset(xs[t] * float((h ? half1 : half0)[t])), acc[t]);
      else if constexpr (has_min(S)) acc[t] = fnma(s.min[h], fset(xsum[t]), acc[t]);
    }
  }
}

template <int BITS, Style S, int T>
static void panel_few(const Packed& w, const Acts& a, const Out& out, int panel, int token) {
  const uint8_t* p = w.data + size_t(panel) * w.panel_stride;
  const int8_t* x[T];
  F acc[T];
  for (int t = 0; t < T; ++t) x[t] = a.q + size_t(token + t) * a.q_stride, acc[t] = fzero();
  int blocks = w.cols / kBlock;
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = blocks - b0 < kSuper ? blocks - b0 : kSuper;
    Header<S> header(p);
    p += header_bytes(S, n);
    for (int b = 0; b < n; ++b, p += block_bytes(BITS)) {
      for (int i = 0; i < block_bytes(BITS); i += 64) __builtin_prefetch(p + kAhead + i);
      Scales s = header.block(b);
      block_few<BITS, S, T>(p, s, a, token, b0 + b, x, w.format.zero, acc);
    }
  }
  for (int t = 0; t < T; ++t) finish(w, out, panel, token + t, acc[t]);
}

template <int BITS, Style S>
static void panels_few(const Packed& w, const Acts& a, const Out& out, int begin, int end) {
  for (int panel = begin; panel < end; ++panel) {
    int t = 0;
    for (; t + 4 <= a.n; t += 4) panel_few<BITS, S, 4>(w, a, out, panel, t);
    switch (a.n - t) {
      case 1: panel_few<BITS, S, 1>(w, a, out, panel, t); break;
      case 2: panel_few<BITS, S, 2>(w, a, out, panel, t); break;
      case 3: panel_few<BITS, S, 3>(w, a, out, panel, t); break;
      default: break;
    }
  }
}

// --- many tokens -------------------------------------------------------------------------------------------------

// A panel unpacked: bytes [block][8 groups][64], then scales and minima [block][part][16] as floats.
struct Scratch {
  uint8_t* bytes;
  float *scale, *min;
  Scratch(uint8_t* memory, int cols) {
    bytes = memory;
    scale = reinterpret_cast<float*>(memory + size_t(cols) * kPanelRows);
    min = scale + size_t(cols);  // cols / 32 blocks x 2 parts x 16 lanes
  }
  static size_t size(int cols) { return size_t(cols) * (kPanelRows + 2 * sizeof(float)); }  // a multiple of 64
};

template <int BITS, int G>
static inline void unpack_groups(const uint8_t* q, uint8_t* to, int minus) {
  if constexpr (G < 8) {
    B v = group_bytes<BITS, G>(q);
    bstore(to + 64 * G, minus ? bsub(v, uint8_t(minus)) : v);
    unpack_groups<BITS, G + 1>(q, to, minus);
  }
}

// `minus` is taken off every byte (AMX multiplies signed bytes and so needs no zero point).
template <int BITS, Style S>
static void unpack_panel(const Packed& w, int panel, Scratch to, int minus) {
  const uint8_t* p = w.data + size_t(panel) * w.panel_stride;
  int blocks = w.cols / kBlock;
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = blocks - b0 < kSuper ? blocks - b0 : kSuper;
    Header<S> header(p);
    p += header_bytes(S, n);
    for (int b = 0; b < n; ++b, p += block_bytes(BITS)) {
      unpack_groups<BITS, 0>(p, to.bytes + size_t(b0 + b) * 512, minus);
      Scales s = header.block(b);
      for (int h = 0; h < (halves(S) ? 2 : 1); ++h) {
        fstore(to.scale + size_t(b0 + b) * 32 + 16 * h, s.scale[h]);
        if constexpr (has_min(S)) fstore(to.min + size_t(b0 + b) * 32 + 16 * h, s.min[h]);
      }
    }
  }
}

template <int BITS, int T, int G0, int G1, bool HALVES>
static inline void dot_unpacked(const uint8_t* q, const int8_t* x, int stride, Dot<BITS>* dot) {
  if constexpr (G0 < G1) {
    B w = bload(q + 64 * G0);
    for (int t = 0; t < T; ++t) dot[t].template group<(HALVES ? G0 & 3 : G0)>(w, x + size_t(t) * stride + 4 * G0);
    dot_unpacked<BITS, T, G0 + 1, G1, HALVES>(q, x, stride, dot);
  }
}

// T tokens against an unpacked panel. Rows of tokens past a.n exist (buffers are padded) and are not stored.
template <int BITS, Style S, int T>
static void tile_many(const Packed& w, const Scratch& u, const Acts& a, const Out& out, int panel, int token) {
  constexpr int parts = halves(S) ? 2 : 1;
  F acc[T];
  for (int t = 0; t < T; ++t) acc[t] = fzero();
  const int8_t* x = a.q + size_t(token) * a.q_stride;
  for (int b = 0; b < w.cols / kBlock; ++b, x += kBlock) {
    const float* xs = a.scale + size_t(b) * a.token_stride + token;
    const float* xsum = a.sum + size_t(b) * a.token_stride + token;
    const int32_t* half0 = a.isum + size_t(2 * b) * a.token_stride + token;
    const int32_t* half1 = half0 + a.token_stride;
    for (int h = 0; h < parts; ++h) {
      Dot<BITS> dot[T];
      for (int t = 0; t < T; ++t) dot[t].start(parts == 2 ? (h ? half1 : half0)[t] : half0[t] + half1[t], w.format.zero);
      const uint8_t* q = u.bytes + size_t(b) * 512;
      if constexpr (parts == 2) {
        if (h == 0) dot_unpacked<BITS, T, 0, 4, true>(q, x, a.q_stride, dot);
        else dot_unpacked<BITS, T, 4, 8, true>(q, x, a.q_stride, dot);
      } else {
        dot_unpacked<BITS, T, 0, 8, false>(q, x, a.q_stride, dot);
      }
      F scale = fload(u.scale + size_t(b) * 32 + 16 * h);
      for (int t = 0; t < T; ++t) {
        acc[t] = fma(tofloat(dot[t].total()), mul(scale, fset(xs[t])), acc[t]);
        if constexpr (has_min(S)) {
          F min = fload(u.min + size_t(b) * 32 + 16 * h);
          float sum = S == Style::K16_MIN ? xs[t] * float((h ? half1 : half0)[t]) : xsum[t];
          acc[t] = fnma(min, fset(sum), acc[t]);
        }
      }
    }
  }
  for (int t = 0; t < T && token + t < a.n; ++t) finish(w, out, panel, token + t, acc[t]);
}

#ifdef GANGPAO_AMX
#include "amx.h"
#endif

template <int BITS, Style S>
static void panels_many(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
#ifdef GANGPAO_AMX
  const Scratch u[2] = {Scratch(scratch, w.cols), Scratch(scratch + Scratch::size(w.cols), w.cols)};
  for (int panel = begin; panel < end; panel += 2) {
    int n = std::min(2, end - panel);
    for (int i = 0; i < n; ++i) unpack_panel<BITS, S>(w, panel + i, u[i], w.format.zero);
    if (n == 2) panels_amx<S, 2>(w, u, a, out, panel);
    else panels_amx<S, 1>(w, u, a, out, panel);
  }
#else
  Scratch u(scratch, w.cols);
  for (int panel = begin; panel < end; ++panel) {
    unpack_panel<BITS, S>(w, panel, u, 0);
    for (int t = 0; t < a.n; t += kTokenTile) tile_many<BITS, S, kTokenTile>(w, u, a, out, panel, t);
  }
#endif
}

// --- float weights -----------------------------------------------------------------------------------------------

template <FloatType W>
static inline F load_weights(const uint8_t* p, size_t i) {
  if constexpr (W == FloatType::F32) return fload(reinterpret_cast<const float*>(p) + i);
  else if constexpr (W == FloatType::F16) return hload(reinterpret_cast<const uint16_t*>(p) + i);
  else return bf16load(reinterpret_cast<const uint16_t*>(p) + i);
}

// Even and odd columns have a sum each: two chains hide half of the latency, and the order stays fixed.
template <FloatType W, int T>
static void float_tile(const Packed& w, const Acts& a, const Out& out, int panel, int token) {
  const uint8_t* p = w.data + size_t(panel) * w.panel_stride;
  F even[T], odd[T];
  for (int t = 0; t < T; ++t) even[t] = odd[t] = fzero();
  const float* x = a.f + size_t(token) * a.f_stride;
  int c = 0;
  for (; c + 1 < w.cols; c += 2) {
    F w0 = load_weights<W>(p, size_t(c) * 16), w1 = load_weights<W>(p, size_t(c) * 16 + 16);
    for (int t = 0; t < T; ++t) {
      even[t] = fma(w0, fset(x[size_t(t) * a.f_stride + c]), even[t]);
      odd[t] = fma(w1, fset(x[size_t(t) * a.f_stride + c + 1]), odd[t]);
    }
  }
  if (c < w.cols) {
    F w0 = load_weights<W>(p, size_t(c) * 16);
    for (int t = 0; t < T; ++t) even[t] = fma(w0, fset(x[size_t(t) * a.f_stride + c]), even[t]);
  }
  for (int t = 0; t < T; ++t) finish(w, out, panel, token + t, add(even[t], odd[t]));
}

template <FloatType W>
static void panels_float(const Packed& w, const Acts& a, const Out& out, int begin, int end) {
  for (int panel = begin; panel < end; ++panel) {
    int t = 0;
    for (; t + 4 <= a.n; t += 4) float_tile<W, 4>(w, a, out, panel, t);
    for (; t < a.n; ++t) float_tile<W, 1>(w, a, out, panel, t);
  }
}

// --- choice ------------------------------------------------------------------------------------------------------

template <int BITS, Style S>
static void panels(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  if (a.n <= kFewTokens) panels_few<BITS, S>(w, a, out, begin, end);
  else panels_many<BITS, S>(w, a, out, begin, end, scratch);
}

static void linear_panels(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  int bits = w.format.bits;
  switch (w.format.style) {
    case Style::F16:
      if (bits == 2) return panels<2, Style::F16>(w, a, out, begin, end, scratch);
      if (bits == 4) return panels<4, Style::F16>(w, a, out, begin, end, scratch);
      if (bits == 5) return panels<5, Style::F16>(w, a, out, begin, end, scratch);
      return panels<8, Style::F16>(w, a, out, begin, end, scratch);
    case Style::F16_MIN:
      if (bits == 4) return panels<4, Style::F16_MIN>(w, a, out, begin, end, scratch);
      return panels<5, Style::F16_MIN>(w, a, out, begin, end, scratch);
    case Style::K:
      if (bits == 4) return panels<4, Style::K>(w, a, out, begin, end, scratch);
      return panels<5, Style::K>(w, a, out, begin, end, scratch);
    case Style::K16:
      if (bits == 3) return panels<3, Style::K16>(w, a, out, begin, end, scratch);
      return panels<6, Style::K16>(w, a, out, begin, end, scratch);
    case Style::K16_MIN:
      return panels<2, Style::K16_MIN>(w, a, out, begin, end, scratch);
    case Style::FLOAT:
      if (w.float_type == FloatType::F32) return panels_float<FloatType::F32>(w, a, out, begin, end);
      if (w.float_type == FloatType::F16) return panels_float<FloatType::F16>(w, a, out, begin, end);
      return panels_float<FloatType::BF16>(w, a, out, begin, end);
  }
}
