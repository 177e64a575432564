// The searches of gangpao/formats/quants/search.py and superblock.py. A lane of a vector is a block or a superblock, so the sums over
// a group go from the first element to the last without a horizontal step, and the width of a vector changes no bit. Vectors are the
// compiler's own (GCC and Clang), as wide as the instruction set's registers.
#pragma once

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
typedef float Lane __attribute__((vector_size(4 * kWide)));
typedef int32_t LaneInt __attribute__((vector_size(4 * kWide)));
typedef uint8_t LaneByte __attribute__((vector_size(kWide)));

constexpr float kTiny = 1e-12f, kWhole = 12582912.0f, kMostLoss = 3e38f, kLeastOffset = -3e38f, kLargestF16 = 65504.0f;

static inline Lane every(float x) { return x - Lane{}; }
static inline Lane lower(Lane a, Lane b) { return a < b ? a : b; }
static inline Lane higher(Lane a, Lane b) { return a > b ? a : b; }
static inline Lane magnitude(Lane a) { return Lane(LaneInt(a) & 0x7fffffff); }
static inline Lane nearest_integer(Lane y, float low, float high) {
  return (lower(higher(y, every(low)), every(high)) + kWhole) - kWhole;
}
static inline Lane quotient(Lane a, Lane b) {
  auto fits = b > 0.0f;
  return fits ? a / (fits ? b : every(1.0f)) : every(0.0f);
}
static inline Lane inverse(Lane x) {
  auto fits = magnitude(x) >= kTiny;
  return fits ? 1.0f / (fits ? x : every(1.0f)) : every(0.0f);
}
static inline Lane half(Lane x) {
  x = lower(higher(x, every(-kLargestF16)), every(kLargestF16));
  for (int l = 0; l < kWide; ++l) x[l] = half_to_float(float_to_half(x[l]));
  return x + 0.0f;
}

// Integers from LOW to HIGH; ZERO is what is added to them in the file.
template <int LOW, int HIGH, int ZERO>
struct IntegerGrid {
  static inline Lane nearest(Lane y) { return nearest_integer(y, LOW, HIGH); }
  static inline LaneInt stored(Lane y) { return __builtin_convertvector(nearest(y), LaneInt) + ZERO; }
};

// The codebook of IQ4: as many borders between levels as lie below y are passed.
struct Iq4Grid {
  static constexpr float level[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  static inline Lane nearest(Lane y) {
    Lane q = every(level[0]);
#pragma GCC unroll 15
    for (int i = 0; i < 15; ++i) q += Lane(LaneInt(every(level[i + 1] - level[i])) & LaneInt(y > (level[i] + level[i + 1]) * 0.5f));
    return q;
  }
  static inline LaneInt stored(Lane y) {
    LaneInt q{};
    for (int i = 0; i < 15; ++i) q -= LaneInt(y > (level[i] + level[i + 1]) * 0.5f);
    return q;
  }
};

// --- one scale

// For K inverse scales at once: sums of w x q and w q q over G elements.
template <class Grid, int G, int K>
static inline void fit_sums(const Lane* x, const Lane* w, const Lane* wx, const Lane* unit, Lane* xq, Lane* q2) {
  Lane a[K] = {}, b[K] = {};
  for (int i = 0; i < G; ++i) {
    Lane xi = x[i], wi = w[i], wxi = wx[i];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      Lane q = Grid::nearest(xi * unit[k]);
      a[k] += wxi * q;
      b[k] += (wi * q) * q;
    }
  }
  for (int k = 0; k < K; ++k) xq[k] = a[k], q2[k] = b[k];
}

template <class Search, int G>
static inline Lane symmetric_scale(const Lane* x, const Lane* w, const Lane* wx) {
  using Grid = typename Search::Grid;
  constexpr int kTries = int(sizeof(Search::tries) / sizeof(float)), kAtOnce = 2;
  static_assert(kTries % kAtOnce == 0);
  Lane largest = x[0], top = magnitude(x[0]);
  for (int i = 1; i < G; ++i) {
    Lane m = magnitude(x[i]);
    auto more = m > top;
    top = more ? m : top, largest = more ? x[i] : largest;
  }
  Lane one = inverse(largest), best{}, scale{}, units[kAtOnce], xq[kAtOnce], q2[kAtOnce];
  for (int t = 0; t < kTries; t += kAtOnce) {
    for (int k = 0; k < kAtOnce; ++k) units[k] = Search::tries[t + k] * one;
    fit_sums<Grid, G, kAtOnce>(x, w, wx, units, xq, q2);
    for (int k = 0; k < kAtOnce; ++k) {
      Lane s = quotient(xq[k], q2[k]), gain = s * xq[k];
      auto better = gain > best;
      best = better ? gain : best, scale = better ? s : scale;
    }
  }
  for (int r = 0; r < Search::rounds; ++r) {
    units[0] = inverse(scale);
    fit_sums<Grid, G, 1>(x, w, wx, units, xq, q2);
    scale = quotient(xq[0], q2[0]);
  }
  return scale;
}

// --- scale and offset

template <class Search, int G>
struct OffsetFit {
  using Grid = typename Search::Grid;
  const Lane* w;
  Lane y[G], wy[G], w1{}, y1{}, least;

  template <int K>
  inline void operator()(const Lane* unit, Lane from, Lane* scale, Lane* offset, Lane* gain) const {
    Lane a[K] = {}, b[K] = {}, c[K] = {};
    for (int i = 0; i < G; ++i) {
      Lane z = y[i] + from, wi = w[i], wyi = wy[i];
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        Lane q = Grid::nearest(z * unit[k]), wq = wi * q;
        a[k] += wq, b[k] += wq * q, c[k] += wyi * q;
      }
    }
    for (int k = 0; k < K; ++k) {
      Lane q1 = a[k], q2 = b[k], yq = c[k];
      Lane s = quotient(w1 * yq - q1 * y1, w1 * q2 - q1 * q1);
      Lane o = higher((s * q1 - y1) / w1, least), moved = yq + o * q1;
      s = quotient(moved, q2);
      scale[k] = s, offset[k] = o, gain[k] = s * moved - o * ((y1 + y1) + o * w1);
    }
  }
};

template <class Search, int G>
static inline void offset_scale(const Lane* x, const Lane* w, Lane& scale_out, Lane& offset_out) {
  constexpr int kTries = int(sizeof(Search::tries) / sizeof(float)), kAtOnce = 2;
  static_assert(kTries % kAtOnce == 0);
  Lane low = x[0], high = x[0];
  for (int i = 1; i < G; ++i) low = lower(low, x[i]), high = higher(high, x[i]);
  if (!Search::is_signed) low = lower(low, every(0.0f));
  OffsetFit<Search, G> fit;
  fit.w = w, fit.least = Search::is_signed ? every(kLeastOffset) : low;
  for (int i = 0; i < G; ++i) {
    fit.y[i] = x[i] - low, fit.wy[i] = w[i] * fit.y[i];
    fit.w1 += w[i], fit.y1 += fit.wy[i];
  }
  Lane one = inverse(high - low), best{}, scale{}, offset{}, units[kAtOnce], s[kAtOnce], o[kAtOnce], g[kAtOnce];
  for (int t = 0; t < kTries; t += kAtOnce) {
    for (int k = 0; k < kAtOnce; ++k) units[k] = (Search::high + Search::tries[t + k]) * one;
    fit.template operator()<kAtOnce>(units, every(0.0f), s, o, g);
    for (int k = 0; k < kAtOnce; ++k) {
      auto better = g[k] > best;
      scale = better ? s[k] : scale, offset = better ? o[k] : offset, best = better ? g[k] : best;
    }
  }
  for (int r = 0; r < Search::rounds; ++r) {
    units[0] = inverse(scale);
    fit.template operator()<1>(units, offset, s, o, g);
    auto better = g[0] > best;
    scale = better ? s[0] : scale, offset = better ? o[0] : offset, best = better ? g[0] : best;
  }
  scale_out = scale, offset_out = offset - low;
}

// --- superblocks: scales

template <int GROUPS>
struct Scaled {
  Lane gain{}, scale[GROUPS]{}, xq[GROUPS]{}, q2[GROUPS]{}, d{};
};

// The state, or one with the float d and integer scales near wanted / d where that gains more.
template <class Type, int G, int GROUPS>
static void better_scales(const Lane* x, const Lane* w, const Lane* wx, Lane d, const Lane* wanted, Scaled<GROUPS>& state) {
  using Grid = typename Type::Search::Grid;
  constexpr int kSteps = 3;
  Scaled<GROUPS> found;
  Lane per = inverse(d);
  for (int j = 0; j < GROUPS; ++j) {
    Lane middle = nearest_integer(wanted[j] * per, Type::low, Type::high), best{}, integer[kSteps], scale[kSteps], unit[kSteps],
         xq[kSteps], q2[kSteps];
    for (int s = 0; s < kSteps; ++s) {
      integer[s] = nearest_integer(middle + float(s - 1), Type::low, Type::high);
      scale[s] = d * integer[s], unit[s] = inverse(scale[s]);
    }
    fit_sums<Grid, G, kSteps>(x + G * j, w + G * j, wx + G * j, unit, xq, q2);
    for (int s = 0; s < kSteps; ++s) {
      Lane gain = scale[s] * ((xq[s] + xq[s]) - scale[s] * q2[s]);
      auto better = gain > best;
      best = better ? gain : best, found.scale[j] = better ? integer[s] : found.scale[j];
      found.xq[j] = better ? xq[s] : found.xq[j], found.q2[j] = better ? q2[s] : found.q2[j];
    }
    found.gain += best;
  }
  auto better = found.gain > state.gain;
  state.gain = better ? found.gain : state.gain, state.d = better ? d : state.d;
  for (int j = 0; j < GROUPS; ++j) {
    state.scale[j] = better ? found.scale[j] : state.scale[j];
    state.xq[j] = better ? found.xq[j] : state.xq[j], state.q2[j] = better ? found.q2[j] : state.q2[j];
  }
}

template <class Type, int G, int GROUPS>
static Scaled<GROUPS> find_scales(const Lane* x, const Lane* w, const Lane* wx) {
  Lane wanted[GROUPS];
  for (int j = 0; j < GROUPS; ++j) wanted[j] = symmetric_scale<typename Type::Search, G>(x + G * j, w + G * j, wx + G * j);
  Lane largest = wanted[0];
  for (int j = 1; j < GROUPS; ++j) largest = magnitude(wanted[j]) > magnitude(largest) ? wanted[j] : largest;
  Scaled<GROUPS> state;
  for (float put : Type::tries) better_scales<Type, G, GROUPS>(x, w, wx, half(largest / put), wanted, state);
  for (int r = 0; r < Type::rounds; ++r) {
    Lane xa{}, aa{};
    for (int j = 0; j < GROUPS; ++j) {
      xa += state.scale[j] * state.xq[j], aa += (state.scale[j] * state.scale[j]) * state.q2[j];
      wanted[j] = state.d * state.scale[j];
    }
    better_scales<Type, G, GROUPS>(x, w, wx, half(quotient(xa, aa)), wanted, state);
  }
  return state;
}

// --- superblocks: scales and minima

template <int GROUPS>
struct Paired {
  Lane loss = every(kMostLoss), scale[GROUPS]{}, minimum[GROUPS]{}, q1[GROUPS]{}, q2[GROUPS]{}, xq[GROUPS]{}, d{}, dmin{};
};

// What a group loses for each of three integer scales with one minimum.
template <class Grid, int G>
static inline void losses(const Lane* x, const Lane* w, Lane shift, const Lane* full, const Lane* unit, Lane* loss) {
  Lane a[3] = {};
  for (int i = 0; i < G; ++i) {
    Lane y = x[i] + shift, wi = w[i];
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      Lane e = y - full[k] * Grid::nearest(y * unit[k]);
      a[k] += (wi * e) * e;
    }
  }
  for (int k = 0; k < 3; ++k) loss[k] = a[k];
}

// One group of better_pairs: the integers near scale / d and offset / dmin that lose least; returns what is lost.
template <class Type, int G>
static inline Lane best_pair(const Lane* x, const Lane* w, Lane d, Lane dmin, Lane near_s, Lane near_m, Lane& scale, Lane& minimum) {
  using Grid = typename Type::Search::Grid;
  Lane full[3], unit[3], integer[3], loss[3][3], low[3];
  for (int a = 0; a < 3; ++a) {
    integer[a] = nearest_integer(near_s + float(a - 1), 0.0f, Type::high);
    full[a] = d * integer[a], unit[a] = inverse(full[a]);
    low[a] = nearest_integer(near_m + float(a - 1), 0.0f, Type::high);
  }
  for (int b = 0; b < 3; ++b) losses<Grid, G>(x, w, dmin * low[b], full, unit, loss[b]);
  Lane best = every(kMostLoss);
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < 3; ++b) {
      auto better = loss[b][a] < best;
      best = better ? loss[b][a] : best, scale = better ? integer[a] : scale, minimum = better ? low[b] : minimum;
    }
  return best;
}

template <class Type, int G, int GROUPS>
static void better_pairs(const Lane* x, const Lane* w, const Lane* wx, Lane d, Lane dmin, const Lane* scale, const Lane* offset,
                         Paired<GROUPS>& state) {
  using Grid = typename Type::Search::Grid;
  Paired<GROUPS> found;
  Lane per = inverse(d), per_min = inverse(dmin), loss{};
  for (int j = 0; j < GROUPS; ++j) {
    const Lane *xj = x + G * j, *wj = w + G * j, *wxj = wx + G * j;
    Lane near_s = nearest_integer(scale[j] * per, 0.0f, Type::high), near_m = nearest_integer(offset[j] * per_min, 0.0f, Type::high);
    loss += best_pair<Type, G>(xj, wj, d, dmin, near_s, near_m, found.scale[j], found.minimum[j]);
    Lane shift = dmin * found.minimum[j], unit = inverse(d * found.scale[j]), q1{}, q2{}, xq{};
    for (int i = 0; i < G; ++i) {
      Lane q = Grid::nearest((xj[i] + shift) * unit), wq = wj[i] * q;
      q1 += wq, q2 += wq * q, xq += wxj[i] * q;
    }
    found.q1[j] = q1, found.q2[j] = q2, found.xq[j] = xq;
  }
  auto better = loss < state.loss;
  state.loss = better ? loss : state.loss, state.d = better ? d : state.d, state.dmin = better ? dmin : state.dmin;
  for (int j = 0; j < GROUPS; ++j) {
    state.scale[j] = better ? found.scale[j] : state.scale[j], state.minimum[j] = better ? found.minimum[j] : state.minimum[j];
    state.q1[j] = better ? found.q1[j] : state.q1[j], state.q2[j] = better ? found.q2[j] : state.q2[j];
    state.xq[j] = better ? found.xq[j] : state.xq[j];
  }
}

// d and dmin that lose least with the integers of a state. w1, x1: sums of weights and weighted values of each group.
template <int GROUPS>
static void refit(const Paired<GROUPS>& s, const Lane* w1, const Lane* x1, Lane& d, Lane& dmin) {
  Lane aa{}, ab{}, bb{}, xa{}, xb{};
  for (int j = 0; j < GROUPS; ++j) {
    aa += (s.scale[j] * s.scale[j]) * s.q2[j], ab += (s.scale[j] * s.minimum[j]) * s.q1[j];
    bb += (s.minimum[j] * s.minimum[j]) * w1[j];
    xa += s.scale[j] * s.xq[j], xb += s.minimum[j] * x1[j];
  }
  Lane determinant = aa * bb - ab * ab;
  d = determinant > 0.0f ? quotient(xa * bb - ab * xb, determinant) : quotient(xa, aa);
  dmin = quotient(ab * xa - aa * xb, determinant);
  d = half(higher(d, every(0.0f))), dmin = half(higher(dmin, every(0.0f)));
}

template <class Type, int G, int GROUPS>
static Paired<GROUPS> find_pairs(const Lane* x, const Lane* w, const Lane* wx) {
  Lane scale[GROUPS], offset[GROUPS], w1[GROUPS], x1[GROUPS], top{}, bottom{};
  for (int j = 0; j < GROUPS; ++j) {
    offset_scale<typename Type::Search, G>(x + G * j, w + G * j, scale[j], offset[j]);
    top = higher(scale[j], top), bottom = higher(offset[j], bottom);
    w1[j] = x1[j] = Lane{};
    for (int i = G * j; i < G * (j + 1); ++i) w1[j] += w[i], x1[j] += wx[i];
  }
  Paired<GROUPS> state;
  for (auto& put : Type::tries)
    better_pairs<Type, G, GROUPS>(x, w, wx, half(top / put[0]), half(bottom / put[1]), scale, offset, state);
  for (int r = 0; r < Type::rounds; ++r) {
    Lane d, dmin;
    refit(state, w1, x1, d, dmin);
    for (int j = 0; j < GROUPS; ++j) scale[j] = state.d * state.scale[j], offset[j] = state.dmin * state.minimum[j];
    better_pairs<Type, G, GROUPS>(x, w, wx, d, dmin, scale, offset, state);
  }
  return state;
}
