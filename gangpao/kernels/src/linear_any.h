// Float weights, and the choice of a path for any linear layer.

// --- float weights -----------------------------------------------------------------------------------------------

template <FloatType W>
static inline F load_weights(const uint8_t* p, size_t i) {
  if constexpr (W == FloatType::F32) return fload(reinterpret_cast<const float*>(p) + i);
  else if constexpr (W == FloatType::F16) return hload(reinterpret_cast<const uint16_t*>(p) + i);
  else return bf16load(reinterpret_cast<const uint16_t*>(p) + i);
}

// Even and odd columns have a sum each: two chains hide half of the latency, and the order stays fixed. Few tokens: weights go once
// through the registers.
template <FloatType W, int T>
static void float_few(const Packed& w, const Acts& a, const Out& out, int panel, int token) {
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

// Many tokens: a panel as floats in the cache, and tiles of tokens run over it twice, so that one sum for each token and row is in
// registers at a time. With both, 16 registers do not hold 4 tokens (Zen 3: 2 instead of 30 billion products a second and core).
constexpr int kFloatTile = kQueryTile >= 8 ? 12 : 6;

template <int T>
static inline void float_chain(const Packed& w, const float* p, const float* x, int stride, int first, F* sum) {
  for (int t = 0; t < T; ++t) sum[t] = fzero();
  for (int c = first; c < w.cols; c += 2) {
    F weights = fload(p + size_t(c) * 16);
    for (int t = 0; t < T; ++t) sum[t] = fma(weights, fset(x[size_t(t) * stride + c]), sum[t]);
  }
}

template <int T>
static void float_tile(const Packed& w, const float* p, const Acts& a, const Out& out, int panel, int token) {
  F even[T], odd[T];
  const float* x = a.f + size_t(token) * a.f_stride;
  float_chain<T>(w, p, x, a.f_stride, 0, even);
  float_chain<T>(w, p, x, a.f_stride, 1, odd);
  for (int t = 0; t < T; ++t) finish(w, out, panel, token + t, add(even[t], odd[t]));
}

template <FloatType W>
static void panels_float(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  for (int panel = begin; panel < end; ++panel) {
    int t = 0;
    if (a.n <= 4) {
      for (; t + 2 <= a.n; t += 2) float_few<W, 2>(w, a, out, panel, t);
      if (t < a.n) float_few<W, 1>(w, a, out, panel, t);
      continue;
    }
    const uint8_t* packed = w.data + size_t(panel) * w.panel_stride;
    auto* p = reinterpret_cast<const float*>(W == FloatType::F32 ? packed : scratch);
    if constexpr (W != FloatType::F32)
      for (int c = 0; c < w.cols; ++c) fstore(reinterpret_cast<float*>(scratch) + size_t(c) * 16, load_weights<W>(packed, size_t(c) * 16));
    for (; t + kFloatTile <= a.n; t += kFloatTile) float_tile<kFloatTile>(w, p, a, out, panel, t);
    for (; t + 4 <= a.n; t += 4) float_tile<4>(w, p, a, out, panel, t);
    for (; t + 2 <= a.n; t += 2) float_tile<2>(w, p, a, out, panel, t);
    if (t < a.n) float_tile<1>(w, p, a, out, panel, t);
  }
}

static size_t float_scratch(int cols) { return size_t(cols) * kPanelRows * sizeof(float); }

// --- choice ------------------------------------------------------------------------------------------------------

template <Values V, Style S, int T, int P = 1>
static void few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int panel, int token) {
  if constexpr (is_k(S)) k_panel_few<V, S, T, P>(w, a, out, ahead, panel, token);
  else panel_few<V, S, T, P>(w, a, out, ahead, panel, token);
}

// Whether one token may meet kPlaces panels at once: other weights take so many instructions that no registers are left for it.
constexpr bool fits_places(Values v, Style s) {
  if (s == Style::K) return v == Values::U4;
  return s == Style::F16 && (v == Values::U4 || v == Values::S8 || v == Values::IQ4);
}

template <Values V, Style S>
static void panels_few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int begin, int end) {
  if constexpr (kPlaces > 1 && fits_places(V, S)) {
    if (a.n == 1 && ahead.many_places) {
      // The hardware reads ahead in several places faster than in one, and then wants less help.
      const Ahead near{0, V == Values::S8 ? 0 : 1024, true};
      for (; begin + kPlaces <= end; begin += kPlaces) few<V, S, 1, kPlaces>(w, a, out, near, begin, 0);
      for (; begin + 2 <= end; begin += 2) few<V, S, 1, 2>(w, a, out, near, begin, 0);
    }
  }
  for (int panel = begin; panel < end; ++panel) {
    int t = 0;
    // With 32 registers one pass serves up to eight tokens; those past a.n are padding, and not stored.
    if (kTokenTile >= 8 && a.n > 4) {
      if (a.n > 6) few<V, S, 8>(w, a, out, ahead, panel, 0);
      else few<V, S, 6>(w, a, out, ahead, panel, 0);
      continue;
    }
    for (; t + 4 <= a.n; t += 4) few<V, S, 4>(w, a, out, ahead, panel, t);
    switch (a.n - t) {
      case 1: few<V, S, 1>(w, a, out, ahead, panel, t); break;
      case 2: few<V, S, 2>(w, a, out, ahead, panel, t); break;
      case 3: few<V, S, 3>(w, a, out, ahead, panel, t); break;
      default: break;
    }
  }
}

#ifdef GANGPAO_AMX
// Panels go in pairs; a last one alone is its own partner, whose result nobody reads.
template <Values V, Style S>
static void panels_many(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  Scratch u[2] = {Scratch(scratch, w.cols), Scratch(scratch + Scratch::size(w.cols), w.cols)};
  float* acc = reinterpret_cast<float*>(scratch + 2 * Scratch::size(w.cols));  // [panel][token][16 rows]
  size_t rows = (size_t(a.n) + kTile - 1) / kTile * kTile;
  for (int panel = begin; panel < end; panel += 2) {
    int n = std::min(2, end - panel);
    if (n == 1) u[1] = u[0];
    for (int i = 0; i < n; ++i) {
      if constexpr (is_k(S)) unpack_planes<V, S>(w, panel + i, u[i]);
      else unpack_panel<V, S>(w, panel + i, u[i], are_bytes(V) && V != Values::S8 ? 128 : w.format.zero);
    }
    std::memset(acc, 0, 2 * rows * kPanelRows * sizeof(float));
    if constexpr (is_k(S)) k_panels_amx<V, S>(w, u, a, acc);
    else panels_amx<S>(w, u, a, acc);
    for (int t = 0; t < a.n; ++t)
      for (int i = 0; i < n; ++i) finish(w, out, panel + i, t, fload(acc + (i * rows + size_t(t)) * kPanelRows));
  }
}

static size_t scratch_size(int cols, int tokens) {
  return std::max(2 * Scratch::size(cols) + 2 * sizeof(float) * kPanelRows * (size_t(tokens) + kTile), float_scratch(cols));
}
#elif defined(__ARM_FEATURE_DOTPROD)
#include "many_neon.h"
#else
template <Values V, Style S>
static void panels_many(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  Scratch u(scratch, w.cols);
  for (int panel = begin; panel < end; ++panel) {
    if constexpr (is_k(S)) k_unpack_panel<V, S>(w, panel, u);
    else unpack_panel<V, S>(w, panel, u, 0);
    for (int t = 0; t < a.n; t += kTokenTile) {
      if constexpr (is_k(S)) k_tile_many<V, S, kTokenTile>(w, u, a, out, panel, t);
      else tile_many<V, S, kTokenTile>(w, u, a, out, panel, t);
    }
  }
}

static size_t scratch_size(int cols, int) { return std::max(Scratch::size(cols), float_scratch(cols)); }
#endif

template <Values V, Style S>
static void panels(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int begin, int end, uint8_t* scratch) {
  if (a.n <= kFewTokens) panels_few<V, S>(w, a, out, ahead, begin, end);
  else panels_many<V, S>(w, a, out, begin, end, scratch);
}

static void linear_panels(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int begin, int end, uint8_t* scratch) {
  const Format f = w.format;
#define GANGPAO_RUN(VALUES, STYLE) \
  if (f.values == Values::VALUES && f.style == Style::STYLE) \
    return panels<Values::VALUES, Style::STYLE>(w, a, out, ahead, begin, end, scratch);
  GANGPAO_PACKED_FORMS(GANGPAO_RUN)
#undef GANGPAO_RUN
  if (f.style == Style::FLOAT) {
    switch (w.float_type) {
      case FloatType::F32: return panels_float<FloatType::F32>(w, a, out, begin, end, scratch);
      case FloatType::F16: return panels_float<FloatType::F16>(w, a, out, begin, end, scratch);
      case FloatType::BF16: return panels_float<FloatType::BF16>(w, a, out, begin, end, scratch);
    }
  }
  std::abort();  // has_kernel (panel.h) is asked for every reader when this is compiled
}
