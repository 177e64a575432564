// Attention of query rows of one KV head over their cached positions, with a running softmax.
//
// Positions come in pages of 64, always in the same order; every row has its own sums. So a row's result does not depend on
// the rows beside it, on how the prompt was cut, on where its pages lie, or on the thread that computed it. Rows next to
// each other that look at the same page (tokens of one prompt, heads of a group, sequences with a common beginning) share
// what is loaded of it.

constexpr int kPositions = kPage;
constexpr int kRows = 64;

struct Row {
  const float* q;
  float* out;
  int limit;  // positions 0 .. limit - 1 are visible
  const int32_t* pages;
};

template <bool INT8>
static inline F load_k(const HeadCache& c, int tile, int d) {
  size_t at = (size_t(tile) * c.head_dim + d) * 16;
  if constexpr (!INT8) return hload(static_cast<const uint16_t*>(c.k) + at);
  else return s8load(static_cast<const int8_t*>(c.k) + at);
}

template <bool INT8>
static inline F load_v(const HeadCache& c, int position, int d) {
  size_t at = size_t(position) * c.head_dim + d;
  if constexpr (!INT8) return hload(static_cast<const uint16_t*>(c.v) + at);
  else
    return mul(s8load(static_cast<const int8_t*>(c.v) + at),
               fset(half_to_float(c.v_scale[size_t(position) * (c.head_dim / 16) + d / 16])));
}

// Scores of R rows for P tiles of 16 positions; sums run over dims in order (int8: 16 dims, then their scale).
template <bool INT8, int R, int P>
static inline void score_tiles(const HeadCache& c, const Row* rows, int tile, float (*score)[kPositions]) {
  F acc[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) acc[r][p] = fzero();
  for (int d0 = 0; d0 < c.head_dim; d0 += 16) {
    F part[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) part[r][p] = INT8 ? fzero() : acc[r][p];
    for (int d = d0; d < d0 + 16; ++d)
      for (int p = 0; p < P; ++p) {
        F k = load_k<INT8>(c, tile + p, d);
        for (int r = 0; r < R; ++r) part[r][p] = fma(k, fset(rows[r].q[d]), part[r][p]);
      }
    for (int p = 0; p < P; ++p) {
      F scale = fzero();
      if constexpr (INT8) scale = hload(c.k_scale + (size_t(tile + p) * (c.head_dim / 16) + d0 / 16) * 16);
      for (int r = 0; r < R; ++r) acc[r][p] = INT8 ? fma(part[r][p], scale, acc[r][p]) : part[r][p];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) fstore(score[r] + (tile % 4 + p) * 16, acc[r][p]);
}

// Turns the scores of one row into weights; returns the factor for what was summed before.
static inline float soften(float* score, int begin, int limit, float* top, float* total) {
  F s[4];
  float m = *top;
  for (int i = 0; i < 4; ++i) {
    s[i] = fill_from(fload(score + 16 * i), limit - begin - 16 * i, -1e30f);
    m = std::max(m, fhmax(s[i]));
  }
  F sum = fzero();
  for (int i = 0; i < 4; ++i) {
    s[i] = fill_from(exp16(sub(s[i], fset(m))), limit - begin - 16 * i, 0.0f);
    fstore(score + 16 * i, s[i]);
    sum = add(sum, s[i]);
  }
  float t[16];
  fstore(t, exp16(fset(*top - m)));
  *total = std::fmaf(*total, t[0], fsum(sum));
  *top = m;
  return t[0];
}

// The first `count` positions of a page.
template <bool INT8, int R, int C>
static inline void add_values(const HeadCache& c, const Row* rows, int count, int d, const float (*weight)[kPositions],
                              const float* factor) {
  F acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) acc[r][i] = mul(fload(rows[r].out + d + 16 * i), fset(factor[r]));
  for (int p = 0; p < count; ++p)
    for (int i = 0; i < C; ++i) {
      F v = load_v<INT8>(c, p, d + 16 * i);
      for (int r = 0; r < R; ++r) acc[r][i] = fma(v, fset(weight[r][p]), acc[r][i]);
    }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) fstore(rows[r].out + d + 16 * i, acc[r][i]);
}

// R rows over one page, whose first position is `begin`.
template <bool INT8, int R>
static void attend_page(const HeadCache& c, const Row* rows, int begin, float* top, float* total) {
  constexpr int P = R <= 2 ? 4 : R <= 4 ? 2 : 1;
  float score[R][kPositions], factor[R];
  int limit = 0;
  for (int r = 0; r < R; ++r) limit = std::max(limit, rows[r].limit);
  int count = std::min(kPositions, limit - begin);
  for (int tile = 0; tile < 4; tile += P) score_tiles<INT8, R, P>(c, rows, tile, score);
  for (int r = 0; r < R; ++r) factor[r] = soften(score[r], begin, rows[r].limit, &top[r], &total[r]);
  int d = 0;
  constexpr int C = R <= 2 ? 4 : R <= 4 ? 2 : 1;
  for (; d + 16 * C <= c.head_dim; d += 16 * C) add_values<INT8, R, C>(c, rows, count, d, score, factor);
  for (; d < c.head_dim; d += 16) add_values<INT8, R, 1>(c, rows, count, d, score, factor);
}

template <bool INT8>
static void attend_run(const HeadCache& c, const Row* rows, int n, int begin, float* top, float* total) {
  while (n > 0) {
    int take = kQueryTile >= 8 && n >= 8 ? 8 : kQueryTile >= 8 && n >= 6 ? 6 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
    switch (take) {
      case 8: attend_page<INT8, 8>(c, rows, begin, top, total); break;
      case 6: attend_page<INT8, 6>(c, rows, begin, top, total); break;
      case 4: attend_page<INT8, 4>(c, rows, begin, top, total); break;
      case 2: attend_page<INT8, 2>(c, rows, begin, top, total); break;
      default: attend_page<INT8, 1>(c, rows, begin, top, total);
    }
    rows += take, top += take, total += take, n -= take;
  }
}

template <bool INT8>
static void attend_any(const HeadPages& c, const Row* rows, int n) {
  float top[kRows], total[kRows];
  int limit = 0, head_dim = c.first.head_dim;
  for (int r = 0; r < n; ++r) {
    top[r] = -1e30f, total[r] = 0;
    limit = std::max(limit, rows[r].limit);
    for (int d = 0; d < head_dim; d += 16) fstore(rows[r].out + d, fzero());
  }
  for (int begin = 0; begin < limit; begin += kPositions)
    for (int i = 0, end; i < n; i = end) {
      end = i + 1;
      if (rows[i].limit <= begin) continue;
      int page = rows[i].pages[begin / kPositions];
      while (end < n && rows[end].limit > begin && rows[end].pages[begin / kPositions] == page) ++end;
      attend_run<INT8>(c.at(page), rows + i, end - i, begin, top + i, total + i);
    }
  for (int r = 0; r < n; ++r)
    for (int d = 0; d < head_dim; d += 16)
      fstore(rows[r].out + d, mul(fload(rows[r].out + d), fset(1.0f / total[r])));
}

static void attend_group(const HeadPages& c, const Row* rows, int n) {
  if (c.first.int8) attend_any<true>(c, rows, n);
  else attend_any<false>(c, rows, n);
}
