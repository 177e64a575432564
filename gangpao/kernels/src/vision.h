// Encoders of pictures: layer norm, the three forms of GELU, attention of every row over all rows, which needs no cache.

static inline float sum_deviations(const float* x, int n, float mean) {
  F s = fzero();
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    F v = sub(fload(x + i), fset(mean));
    s = fma(v, v, s);
  }
  float total = fsum(s);
  for (; i < n; ++i) total = std::fmaf(x[i] - mean, x[i] - mean, total);
  return total;
}

static inline float sum_row(const float* x, int n) {
  F s = fzero();
  int i = 0;
  for (; i + 16 <= n; i += 16) s = add(s, fload(x + i));
  float total = fsum(s);
  for (; i < n; ++i) total += x[i];
  return total;
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias; in place is allowed.
static void layernorm_row(const float* x, const float* weight, const float* bias, int n, float eps, float* out) {
  float mean = sum_row(x, n) / float(n);
  float r = 1.0f / std::sqrt(sum_deviations(x, n, mean) / float(n) + eps);
  int i = 0;
  for (; i + 16 <= n; i += 16)
    fstore(out + i, fma(mul(sub(fload(x + i), fset(mean)), fset(r)), fload(weight + i), fload(bias + i)));
  for (; i < n; ++i) out[i] = std::fmaf((x[i] - mean) * r, weight[i], bias[i]);
}

// x / (1 + e^-y)
static inline F gated(F x, F y) { return div(x, add(fset(1.0f), exp16(sub(fzero(), y)))); }

// x Phi(x) = max(x, 0) - |x| / 2 erfc(|x| / sqrt 2). With t = 1 / (1 + z / 2), ln(erfc(z) / t) + z^2 is a polynomial in t up to 5e-8
// (fitted at Chebyshev's points for z up to 9.6; beyond, it makes no difference in float32).
static inline F gelu_erf(F x) {
  F size = fabs16(x), z = fmin(mul(size, fset(0.70710678f)), fset(9.6f));
  F t = div(fset(1.0f), fma(z, fset(0.5f), fset(1.0f)));
  F p = fset(0.14144114f);
  p = fma(p, t, fset(-0.66173971f));
  p = fma(p, t, fset(1.11159444f));
  p = fma(p, t, fset(-0.63584948f));
  p = fma(p, t, fset(-0.13053307f));
  p = fma(p, t, fset(0.02813827f));
  p = fma(p, t, fset(0.02539905f));
  p = fma(p, t, fset(0.38858119f));
  p = fma(p, t, fset(0.99840486f));
  p = fma(p, t, fset(-1.26543665f));
  F tail = mul(t, exp16(fnma(z, z, p)));
  return fnma(mul(size, fset(0.5f)), tail, fmax(x, fzero()));
}

template <Gelu KIND>
static inline F gelu16(F x) {
  if constexpr (KIND == Gelu::ERF) return gelu_erf(x);
  if constexpr (KIND == Gelu::QUICK) return gated(x, mul(x, fset(1.702f)));
  // x / 2 (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  return gated(x, mul(x, fma(mul(x, x), fset(0.0713548163f), fset(1.59576912f))));
}

template <Gelu KIND>
static void gelu_as(const float* x, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) fstore(out + i, gelu16<KIND>(fload(x + i)));
  if (i < n) {
    float rest[16] = {};
    for (int j = i; j < n; ++j) rest[j - i] = x[j];
    store_lanes(out + i, gelu16<KIND>(fload(rest)), n - i);
  }
}

static void gelu_row(const float* x, int n, Gelu kind, float* out) {
  if (kind == Gelu::ERF) gelu_as<Gelu::ERF>(x, n, out);
  else if (kind == Gelu::TANH) gelu_as<Gelu::TANH>(x, n, out);
  else gelu_as<Gelu::QUICK>(x, n, out);
}

// Scores of R rows for P tiles of 16 positions; sums run over dims in order.
template <int R, int P>
static inline void score_all(const HeadTiles& t, const float* q, int tile, float (*score)[kPositions]) {
  F acc[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) acc[r][p] = fzero();
  for (int d = 0; d < t.dim; ++d)
    for (int p = 0; p < P; ++p) {
      F k = fload(t.k + (size_t(tile + p) * t.dim + d) * 16);
      for (int r = 0; r < R; ++r) acc[r][p] = fma(k, fset(q[size_t(r) * t.padded + d]), acc[r][p]);
    }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) fstore(score[r] + (tile % 4 + p) * 16, acc[r][p]);
}

// R rows over the block of positions that begins at `begin`; acc, top and total are what was summed before.
template <int R>
static void attend_block(const HeadTiles& t, const float* q, int begin, float* acc, float* top, float* total) {
  constexpr int P = kQueryTile >= 8 && R <= 8 ? 2 : 1;
  float score[R][kPositions], factor[R];
  for (int tile = 0; tile < 4; tile += P) score_all<R, P>(t, q, begin / 16 + tile, score);
  for (int r = 0; r < R; ++r) factor[r] = soften(score[r], begin, 0, t.n, &top[r], &total[r]);
  int count = std::min(kPositions, t.n - begin);
  for (int d = 0; d < t.padded; d += 16) {
    F sum[R];
    for (int r = 0; r < R; ++r) sum[r] = mul(fload(acc + size_t(r) * t.padded + d), fset(factor[r]));
    for (int p = 0; p < count; ++p) {
      F v = fload(t.v + size_t(begin + p) * t.padded + d);
      for (int r = 0; r < R; ++r) sum[r] = fma(v, fset(score[r][p]), sum[r]);
    }
    for (int r = 0; r < R; ++r) fstore(acc + size_t(r) * t.padded + d, sum[r]);
  }
}

// At most kRows rows of one head over all its positions. A row has its own sums, so it does not matter which are beside it.
// scratch: 2 * kRows * padded floats.
static void attend_all_rows(const HeadTiles& t, const float* q, int q_stride, float scale, int rows, float* out, int out_stride,
                            float* scratch) {
  float top[kRows], total[kRows], *scaled = scratch, *acc = scratch + size_t(kRows) * t.padded;
  std::memset(acc, 0, size_t(rows) * t.padded * sizeof(float));
  for (int r = 0; r < rows; ++r) {
    top[r] = -1e30f, total[r] = 0;
    for (int d = 0; d < t.dim; ++d) scaled[size_t(r) * t.padded + d] = q[size_t(r) * q_stride + d] * scale;
  }
  for (int begin = 0; begin < t.n; begin += kPositions)
    for (int r = 0; r < rows;) {
      const float* from = scaled + size_t(r) * t.padded;
      float* to = acc + size_t(r) * t.padded;
      int left = rows - r, take = left >= 8 && kQueryTile >= 8 ? 8 : left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      switch (take) {
        case 8: attend_block<8>(t, from, begin, to, top + r, total + r); break;
        case 6: attend_block<6>(t, from, begin, to, top + r, total + r); break;
        case 4: attend_block<4>(t, from, begin, to, top + r, total + r); break;
        case 2: attend_block<2>(t, from, begin, to, top + r, total + r); break;
        default: attend_block<1>(t, from, begin, to, top + r, total + r);
      }
      r += take;
    }
  for (int r = 0; r < rows; ++r)
    for (int d = 0; d < t.dim; d += 16)
      store_lanes(out + size_t(r) * out_stride + d, mul(fload(acc + size_t(r) * t.padded + d), fset(1.0f / total[r])), t.dim - d);
}
