// Float weights, and the choice of a path for any linear layer.

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

template <int BITS, Style S, int T>
static void few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int panel, int token) {
  if constexpr (is_k(S)) k_panel_few<BITS, S, T>(w, a, out, ahead, panel, token);
  else panel_few<BITS, S, T>(w, a, out, ahead, panel, token);
}

template <int BITS, Style S>
static void panels_few(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int begin, int end) {
  for (int panel = begin; panel < end; ++panel) {
    int t = 0;
    // With 32 registers one pass serves up to eight tokens; those past a.n are padding, and not stored.
    if (kTokenTile >= 8 && a.n > 4) {
      if (a.n > 6) few<BITS, S, 8>(w, a, out, ahead, panel, 0);
      else few<BITS, S, 6>(w, a, out, ahead, panel, 0);
      continue;
    }
    for (; t + 4 <= a.n; t += 4) few<BITS, S, 4>(w, a, out, ahead, panel, t);
    switch (a.n - t) {
      case 1: few<BITS, S, 1>(w, a, out, ahead, panel, t); break;
      case 2: few<BITS, S, 2>(w, a, out, ahead, panel, t); break;
      case 3: few<BITS, S, 3>(w, a, out, ahead, panel, t); break;
      default: break;
    }
  }
}

#ifdef GANGPAO_AMX
// Panels go in pairs; a last one alone is its own partner, whose result nobody reads.
template <int BITS, Style S>
static void panels_many(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  Scratch u[2] = {Scratch(scratch, w.cols), Scratch(scratch + Scratch::size(w.cols), w.cols)};
  float* acc = reinterpret_cast<float*>(scratch + 2 * Scratch::size(w.cols));  // [panel][token][16 rows]
  size_t rows = (size_t(a.n) + kTile - 1) / kTile * kTile;
  for (int panel = begin; panel < end; panel += 2) {
    int n = std::min(2, end - panel);
    if (n == 1) u[1] = u[0];
    for (int i = 0; i < n; ++i) {
      if constexpr (is_k(S)) unpack_planes<BITS, S>(w, panel + i, u[i]);
      else unpack_panel<BITS, S>(w, panel + i, u[i], w.format.zero);
    }
    std::memset(acc, 0, 2 * rows * kPanelRows * sizeof(float));
    if constexpr (is_k(S)) k_panels_amx<BITS, S>(w, u, a, acc);
    else panels_amx<S>(w, u, a, acc);
    for (int t = 0; t < a.n; ++t)
      for (int i = 0; i < n; ++i) finish(w, out, panel + i, t, fload(acc + (i * rows + size_t(t)) * kPanelRows));
  }
}

static size_t scratch_size(int cols, int tokens) {
  return 2 * Scratch::size(cols) + 2 * sizeof(float) * kPanelRows * (size_t(tokens) + kTile);
}
#else
template <int BITS, Style S>
static void panels_many(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  Scratch u(scratch, w.cols);
  for (int panel = begin; panel < end; ++panel) {
    if constexpr (is_k(S)) k_unpack_panel<BITS, S>(w, panel, u);
    else unpack_panel<BITS, S>(w, panel, u, 0);
    for (int t = 0; t < a.n; t += kTokenTile) {
      if constexpr (is_k(S)) k_tile_many<BITS, S, kTokenTile>(w, u, a, out, panel, t);
      else tile_many<BITS, S, kTokenTile>(w, u, a, out, panel, t);
    }
  }
}

static size_t scratch_size(int cols, int) { return Scratch::size(cols); }
#endif

template <int BITS, Style S>
static void panels(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int begin, int end, uint8_t* scratch) {
  if (a.n <= kFewTokens) panels_few<BITS, S>(w, a, out, ahead, begin, end);
  else panels_many<BITS, S>(w, a, out, begin, end, scratch);
}

static void linear_panels(const Packed& w, const Acts& a, const Out& out, Ahead ahead, int begin, int end, uint8_t* scratch) {
  const Format f = w.format;
#define GANGPAO_RUN(BITS, STYLE) \
  if (f.bits == BITS && f.style == Style::STYLE) return panels<BITS, Style::STYLE>(w, a, out, ahead, begin, end, scratch);
  GANGPAO_PACKED_FORMS(GANGPAO_RUN)
#undef GANGPAO_RUN
  if (f.style == Style::FLOAT) {
    switch (w.float_type) {
      case FloatType::F32: return panels_float<FloatType::F32>(w, a, out, begin, end);
      case FloatType::F16: return panels_float<FloatType::F16>(w, a, out, begin, end);
      case FloatType::BF16: return panels_float<FloatType::BF16>(w, a, out, begin, end);
    }
  }
  std::abort();  // has_kernel (panel.h) is asked for every reader when this is compiled
}
