// Attention of query rows of one KV head over their cached positions, with a running softmax.
//
// Positions come in pages of 64, always in the same order; every row has its own sums. So a row's result does not depend on
// the rows beside it, on how the prompt was cut, on where its pages lie, or on the thread that computed it. Rows next to
// each other that look at the same page (tokens of one prompt, heads of a group, sequences with a common beginning) share
// what is loaded of it: a few rows convert it as they go, for many it becomes floats once. Both give the same bits, because both
// multiply the same numbers in the same order.

constexpr int kPositions = kPage;
constexpr int kRows = kRowsAtOnce;
constexpr int kUnpackFrom = 8;  // rows from which a page is turned into floats first; 4-bit pages always are
constexpr bool kManyRegisters = kQueryTile >= 8;

struct Row {
  const float* q;
  float* out;
  int limit;  // positions first .. limit - 1 are visible
  const int32_t* pages;
  int first;
  bool sees(int begin) const { return limit > begin && first < begin + kPositions; }  // anything of the page that begins there
};

// A page as it lies in the cache. kGroup: dims whose keys share a scale; 0: keys have none.
template <bool INT8>
struct AsKept {
  static constexpr int kGroup = INT8 ? kInt8Group : 0;
  const HeadCache& c;
  F key(int tile, int d) const {
    size_t at = (size_t(tile) * c.head_dim + d) * 16;
    if constexpr (!INT8) return hload(static_cast<const uint16_t*>(c.k) + at);
    else return s8load(static_cast<const int8_t*>(c.k) + at);
  }
  F value(int position, int d) const {
    size_t at = size_t(position) * c.head_dim + d;
    if constexpr (!INT8) return hload(static_cast<const uint16_t*>(c.v) + at);
    else
      return mul(s8load(static_cast<const int8_t*>(c.v) + at),
                 fset(half_to_float(c.v_scale[size_t(position) * (c.head_dim / kInt8Group) + d / kInt8Group])));
  }
};

// A page as floats: keys without their scales [tile][dim][16], values [position][dim].
template <int GROUP>
struct AsFloats {
  static constexpr int kGroup = GROUP;
  const HeadCache& c;
  const float *k, *v;
  F key(int tile, int d) const { return fload(k + (size_t(tile) * c.head_dim + d) * 16); }
  F value(int position, int d) const { return fload(v + size_t(position) * c.head_dim + d); }
};

// 16 bytes of two 4-bit numbers each, -8 .. 7: in the low half plus 8, in the high half as they are.
static inline void nibbles(const int8_t* p, F* low, F* high) {
  F both = s8load(p);
  *high = tofloat(ishift(toint(both), 4));
  *low = sub(fnma(*high, fset(16.0f), both), fset(8.0f));
}

static void unpack_keys(const HeadCache& c, float* out) {
  int n = 4 * c.head_dim;  // vectors of 16 positions
  if (c.keys == Kept::F16)
    for (int i = 0; i < n; ++i) fstore(out + 16 * i, hload(static_cast<const uint16_t*>(c.k) + 16 * i));
  if (c.keys == Kept::INT8)
    for (int i = 0; i < n; ++i) fstore(out + 16 * i, s8load(static_cast<const int8_t*>(c.k) + 16 * i));
  if (c.keys == Kept::INT4)
    for (int i = 0; i < n; i += 2) {
      F low, high;
      nibbles(static_cast<const int8_t*>(c.k) + 8 * i, &low, &high);
      fstore(out + 16 * i, low), fstore(out + 16 * i + 16, high);
    }
}

// The first `count` positions.
static void unpack_values(const HeadCache& c, int count, float* out) {
  if (c.values == Kept::F16)
    for (int i = 0; i < count * c.head_dim; i += 16) fstore(out + i, hload(static_cast<const uint16_t*>(c.v) + i));
  if (c.values == Kept::INT8)
    for (int i = 0; i < count * c.head_dim; i += 16)
      fstore(out + i, mul(s8load(static_cast<const int8_t*>(c.v) + i), fset(half_to_float(c.v_scale[i / kInt8Group]))));
  if (c.values == Kept::INT4)
    for (int i = 0; i < count * c.head_dim; i += kInt4Group) {
      F low, high, scale = fset(half_to_float(c.v_scale[i / kInt4Group]));
      nibbles(static_cast<const int8_t*>(c.v) + i / 2, &low, &high);
      fstore(out + i, mul(low, scale)), fstore(out + i + 16, mul(high, scale));
    }
}

// Scores of R rows for P tiles of 16 positions; sums run over dims in order, with scales over a group of them and then its scale.
template <int R, int P, class Page>
static inline void score_tiles(const Page& page, const Row* rows, int tile, float (*score)[kPositions]) {
  constexpr int G = Page::kGroup;
  const HeadCache& c = page.c;
  F acc[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) acc[r][p] = fzero();
  for (int d0 = 0; d0 < c.head_dim; d0 += G ? G : 16) {
    F part[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) part[r][p] = G ? fzero() : acc[r][p];
    for (int d = d0; d < d0 + (G ? G : 16); ++d)
      for (int p = 0; p < P; ++p) {
        F k = page.key(tile + p, d);
        for (int r = 0; r < R; ++r) part[r][p] = fma(k, fset(rows[r].q[d]), part[r][p]);
      }
    for (int p = 0; p < P; ++p) {
      F scale = fzero();
      if constexpr (G != 0) scale = hload(c.k_scale + (size_t(tile + p) * (c.head_dim / G) + d0 / G) * 16);
      for (int r = 0; r < R; ++r) acc[r][p] = G ? fma(part[r][p], scale, acc[r][p]) : part[r][p];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) fstore(score[r] + (tile % 4 + p) * 16, acc[r][p]);
}

// Turns the scores of one row, which sees positions first .. limit - 1, into weights; returns the factor for what was summed before.
static inline float soften(float* score, int begin, int first, int limit, float* top, float* total) {
  int hidden = first - begin;  // positions of the page in front of the first that is visible
  bool whole = hidden <= 0 && limit - begin >= kPositions;
  for (int p = 0; p < hidden; ++p) score[p] = -1e30f;
  F s[4];
  float m = *top;
  for (int i = 0; i < 4; ++i) {
    s[i] = fload(score + 16 * i);
    if (!whole) s[i] = fill_from(s[i], limit - begin - 16 * i, -1e30f);
    m = std::max(m, fhmax(s[i]));
  }
  F sum = fzero();
  for (int i = 0; i < 4; ++i) {
    s[i] = exp16(sub(s[i], fset(m)));
    if (!whole) s[i] = fill_from(s[i], limit - begin - 16 * i, 0.0f);
    fstore(score + 16 * i, s[i]);
    sum = add(sum, s[i]);
  }
  for (int p = 0; p < hidden; ++p) score[p] = 0;  // and not e^-87, which changed no sum
  float t[16];
  fstore(t, exp16(fset(*top - m)));
  *total = std::fmaf(*total, t[0], fsum(sum));
  *top = m;
  return t[0];
}

// The first `count` positions of a page.
template <int R, int C, class Page>
static inline void add_values(const Page& page, const Row* rows, int count, int d, const float (*weight)[kPositions],
                              const float* factor) {
  F acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) acc[r][i] = mul(fload(rows[r].out + d + 16 * i), fset(factor[r]));
  for (int p = 0; p < count; ++p)
    for (int i = 0; i < C; ++i) {
      F v = page.value(p, d + 16 * i);
      for (int r = 0; r < R; ++r) acc[r][i] = fma(v, fset(weight[r][p]), acc[r][i]);
    }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) fstore(rows[r].out + d + 16 * i, acc[r][i]);
}

// How many vectors of sums a row has at once: as many as registers hold, 12 pairs of 16 on AVX2.
constexpr int wide_of(int rows) { return kManyRegisters ? (rows <= 4 ? 4 : 2) : (rows == 1 ? 4 : rows <= 3 ? 2 : 1); }

// R rows over one page, whose first position is `begin`.
template <int R, class Page>
static void attend_page(const Page& page, const Row* rows, int begin, float* top, float* total) {
  constexpr int P = wide_of(R);
  float score[R][kPositions], factor[R];
  int limit = 0, head_dim = page.c.head_dim;
  for (int r = 0; r < R; ++r) limit = std::max(limit, rows[r].limit);
  int count = std::min(kPositions, limit - begin);
  for (int tile = 0; tile < 4; tile += P) score_tiles<R, P>(page, rows, tile, score);
  for (int r = 0; r < R; ++r) factor[r] = soften(score[r], begin, rows[r].first, rows[r].limit, &top[r], &total[r]);
  int d = 0;
  for (; d + 16 * P <= head_dim; d += 16 * P) add_values<R, P>(page, rows, count, d, score, factor);
  for (; d < head_dim; d += 16) add_values<R, 1>(page, rows, count, d, score, factor);
}

template <class Page>
static void attend_run(const Page& page, const Row* rows, int n, int begin, float* top, float* total) {
  while (n > 0) {
    int take = kManyRegisters && n >= 8 ? 8 : n >= 6 ? 6 : kManyRegisters && n >= 4 ? 4 : n >= 3 ? 3 : n;
    switch (take) {
      case 8: attend_page<kManyRegisters ? 8 : 6>(page, rows, begin, top, total); break;
      case 6: attend_page<6>(page, rows, begin, top, total); break;
      case 4: attend_page<kManyRegisters ? 4 : 3>(page, rows, begin, top, total); break;
      case 3: attend_page<3>(page, rows, begin, top, total); break;
      case 2: attend_page<2>(page, rows, begin, top, total); break;
      default: attend_page<1>(page, rows, begin, top, total);
    }
    rows += take, top += take, total += take, n -= take;
  }
}

// Rows that all look at this page. scratch: 2 * kPositions * head_dim floats.
static void attend_shared(const HeadCache& c, const Row* rows, int n, int begin, float* top, float* total, float* scratch) {
  bool packed = c.keys == Kept::INT4 || c.values == Kept::INT4;
  if (n < kUnpackFrom && !packed) {
    if (c.keys == Kept::INT8) attend_run(AsKept<true>{c}, rows, n, begin, top, total);
    else attend_run(AsKept<false>{c}, rows, n, begin, top, total);
    return;
  }
  float *k = scratch, *v = scratch + size_t(kPositions) * c.head_dim;
  int limit = 0;
  for (int r = 0; r < n; ++r) limit = std::max(limit, rows[r].limit);
  unpack_keys(c, k);
  unpack_values(c, std::min(kPositions, limit - begin), v);
  if (c.keys == Kept::F16) attend_run(AsFloats<0>{c, k, v}, rows, n, begin, top, total);
  else if (c.keys == Kept::INT8) attend_run(AsFloats<kInt8Group>{c, k, v}, rows, n, begin, top, total);
  else attend_run(AsFloats<kInt4Group>{c, k, v}, rows, n, begin, top, total);
}

static void attend_group(const HeadPages& c, const Row* rows, int n, float* scratch) {
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
      if (!rows[i].sees(begin)) continue;
      int page = rows[i].pages[begin / kPositions];
      while (end < n && rows[end].sees(begin) && rows[end].pages[begin / kPositions] == page) ++end;
      attend_shared(c.at(page), rows + i, end - i, begin, top + i, total + i, scratch);
    }
  for (int r = 0; r < n; ++r)
    for (int d = 0; d < head_dim; d += 16)
      fstore(rows[r].out + d, mul(fload(rows[r].out + d), fset(1.0f / total[r])));
}
