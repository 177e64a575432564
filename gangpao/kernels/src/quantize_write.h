// Rows of weights to blocks: vectors of blocks are stood up (a lane is a block), searched, and taken down into bytes. The candidates
// are those of gangpao/formats/quants/writers.py.
#pragma once

struct SearchQ4_0 {
  using Grid = IntegerGrid<-8, 7, 8>;
  static constexpr float tries[] = {-8.625f, -8.4375f, -8.25f, -8.0625f, -7.875f, -7.6875f, -7.5f, -7.3125f,
                                    -7.125f, -6.9375f, -6.75f, -6.5625f, 6.375f, 6.6875f, 7, 7.3125f};
  static constexpr int rounds = 2;
};
struct SearchQ5_0 {
  using Grid = IntegerGrid<-16, 15, 16>;
  static constexpr float tries[] = {-16.75f, -16.375f, -16, -15.625f, -15.25f, -14.875f, -14.5f, -14.125f, 14, 14.5f, 15, 15.5f};
  static constexpr int rounds = 2;
};
struct SearchQ8_0 {
  using Grid = IntegerGrid<-127, 127, 0>;
  static constexpr float tries[] = {-127.5f, -127, -126.5f, -126, -125.5f, -125, -124.5f, -124};
  static constexpr int rounds = 2;
};
struct SearchIq4 {
  using Grid = Iq4Grid;
  static constexpr float tries[] = {-139, -134, -129, -124, -119, -114, -109, -104, -99, 101, 107, 113, 119, 125};
  static constexpr int rounds = 2;
};
struct SearchTernary {
  using Grid = IntegerGrid<-1, 1, 1>;
  static constexpr float tries[] = {0.875f, 1, 1.1875f, 1.4375f, 1.6875f, 2, 2.375f, 2.8125f, 3.3125f, 4};
  static constexpr int rounds = 3;
};
struct SearchQ3_K {
  using Grid = IntegerGrid<-4, 3, 4>;
  static constexpr float tries[] = {-4.75f, -4.5625f, -4.375f, -4.1875f, -4, -3.8125f, -3.625f, -3.4375f, -3.25f, -3.0625f,
                                    2.375f, 2.6875f, 3, 3.3125f};
  static constexpr int rounds = 2;
};
struct SearchQ6_K {
  using Grid = IntegerGrid<-32, 31, 32>;
  static constexpr float tries[] = {-33, -32.5f, -32, -31.5f, -31, -30.5f, -30, -29.5f, -29, 29.5f, 30, 30.5f, 31, 31.5f};
  static constexpr int rounds = 3;
};
template <int HIGH, bool SIGNED>
struct SearchOffset {
  using Grid = IntegerGrid<0, HIGH, 0>;
  static constexpr float high = HIGH;
  static constexpr bool is_signed = SIGNED;
};
template <bool SIGNED>
struct Search4Bits : SearchOffset<15, SIGNED> {
  static constexpr float tries[] = {-2, -1.8125f, -1.625f, -1.4375f, -1.25f, -1.0625f, -0.875f, -0.6875f,
                                    -0.5f, -0.3125f, -0.125f, 0.0625f, 0.25f, 0.4375f, 0.625f, 0.8125f};
  static constexpr int rounds = 2;
};
template <bool SIGNED>
struct Search5Bits : SearchOffset<31, SIGNED> {
  static constexpr float tries[] = {-3, -2.6875f, -2.375f, -2.0625f, -1.75f, -1.4375f, -1.125f, -0.8125f, -0.5f, -0.1875f,
                                    0.125f, 0.4375f, 0.75f, 1.0625f};
  static constexpr int rounds = 2;
};
struct Search2Bits : SearchOffset<3, false> {
  static constexpr float tries[] = {-1, -0.8125f, -0.625f, -0.4375f, -0.25f, -0.0625f, 0.125f, 0.3125f, 0.5f, 0.6875f};
  static constexpr int rounds = 3;
};

struct TypeQ3_K {
  using Search = SearchQ3_K;
  static constexpr float low = -32, high = 31, tries[] = {-32, -31, -30, 31};
  static constexpr int rounds = 2, zero = 32;
};
struct TypeQ6_K {
  using Search = SearchQ6_K;
  static constexpr float low = -128, high = 127, tries[] = {-128, -127, 127};
  static constexpr int rounds = 2, zero = 0;
};
struct TypeIQ4_XS {
  using Search = SearchIq4;
  static constexpr float low = -32, high = 31, tries[] = {-32, -31, 31};
  static constexpr int rounds = 2, zero = 32;
};
struct TypeQ2_K {
  using Search = Search2Bits;
  static constexpr float high = 15, tries[][2] = {{15, 15}, {14, 15}, {13, 14}};
  static constexpr int rounds = 3;
};
struct TypeQ4_K {
  using Search = Search4Bits<false>;
  static constexpr float high = 63, tries[][2] = {{63, 63}};
  static constexpr int rounds = 2;
};
struct TypeQ5_K {
  using Search = Search5Bits<false>;
  static constexpr float high = 63, tries[][2] = {{63, 63}};
  static constexpr int rounds = 2;
};

// Blocks [begin, end) of a matrix stood up: element i of block l in lane l of row i. Lanes without a block are zeros.
template <int N>
struct Standing {
  Lane x[N], w[N], wx[N];
  BlockFields fields[kWide];

  void load(const float* values, const float* columns, size_t cols, size_t begin, int count) {
    auto *px = reinterpret_cast<float*>(x), *pw = reinterpret_cast<float*>(w);
    for (int l = 0; l < kWide; ++l) {
      const float* from = l < count ? values + (begin + size_t(l)) * N : nullptr;
      for (int i = 0; i < N; ++i) px[i * kWide + l] = from ? from[i] + 0.0f : 0.0f;
      if (!columns) continue;
      const float* weigh = columns + (begin + size_t(from ? l : 0)) * N % cols;
      for (int i = 0; i < N; ++i) pw[i * kWide + l] = weigh[i];
    }
    for (int i = 0; i < N; ++i) wx[i] = columns ? w[i] * x[i] : x[i];
  }
  void weigh_the_same() {
    for (int i = 0; i < N; ++i) w[i] = every(1.0f);
  }
  void take_values(int i, LaneInt q) {
    for (int l = 0; l < kWide; ++l) fields[l].q[i] = uint8_t(q[l]);
  }
  void take_floats(Lane d, Lane dmin) {
    for (int l = 0; l < kWide; ++l) fields[l].d = float_to_half(d[l]), fields[l].dmin = float_to_half(dmin[l]);
  }
};

template <class Search, int N>
static void search_symmetric(Standing<N>& s) {
  Lane d = half(symmetric_scale<Search, N>(s.x, s.w, s.wx)), unit = inverse(d);
  for (int i = 0; i < N; ++i) s.take_values(i, Search::Grid::stored(s.x[i] * unit));
  s.take_floats(d, Lane{});
}

template <class Search>
static void search_offset(Standing<32>& s) {
  Lane scale, offset;
  offset_scale<Search, 32>(s.x, s.w, scale, offset);
  Lane d = half(scale), dmin = half(offset), unit = inverse(d);
  for (int i = 0; i < 32; ++i) s.take_values(i, Search::Grid::stored((s.x[i] + dmin) * unit));
  s.take_floats(d, -dmin);
}

template <class Type, int G>
static void search_scales(Standing<256>& s) {
  constexpr int kGroups = 256 / G;
  auto found = find_scales<Type, G, kGroups>(s.x, s.w, s.wx);
  for (int j = 0; j < kGroups; ++j) {
    Lane unit = inverse(found.d * found.scale[j]);
    for (int i = G * j; i < G * (j + 1); ++i) s.take_values(i, Type::Search::Grid::stored(s.x[i] * unit));
    for (int l = 0; l < kWide; ++l) s.fields[l].scale[j] = uint8_t(int(found.scale[j][l]) + Type::zero);
  }
  s.take_floats(found.d, Lane{});
}

template <class Type, int G>
static void search_pairs(Standing<256>& s) {
  constexpr int kGroups = 256 / G;
  auto found = find_pairs<Type, G, kGroups>(s.x, s.w, s.wx);
  for (int j = 0; j < kGroups; ++j) {
    Lane unit = inverse(found.d * found.scale[j]), shift = found.dmin * found.minimum[j];
    for (int i = G * j; i < G * (j + 1); ++i) s.take_values(i, Type::Search::Grid::stored((s.x[i] + shift) * unit));
    for (int l = 0; l < kWide; ++l)
      s.fields[l].scale[j] = uint8_t(int(found.scale[j][l])), s.fields[l].minimum[j] = uint8_t(int(found.minimum[j][l]));
  }
  s.take_floats(found.d, found.dmin);
}

// --- ggml's reference rounding, without importance

static inline Lane plain_inverse(Lane d) {
  auto fits = magnitude(d) > 0x1p-126f;
  return fits ? 1.0f / (fits ? d : every(1.0f)) : every(0.0f);
}
static inline LaneInt truncated(Lane x) { return __builtin_convertvector(x, LaneInt); }

static void round_q8_0(Standing<32>& s) {
  Lane top{};
  for (int i = 0; i < 32; ++i) top = higher(magnitude(s.x[i]), top);
  Lane d = top / 127.0f, unit = plain_inverse(d);
  for (int i = 0; i < 32; ++i) {
    Lane y = s.x[i] * unit, whole = __builtin_convertvector(truncated(y), Lane);
    s.take_values(i, truncated(whole) + truncated(2.0f * (y - whole)));
  }
  s.take_floats(d, Lane{});
}
static void round_q4_0(Standing<32>& s) {
  Lane top{}, largest = s.x[0];
  for (int i = 0; i < 32; ++i) {
    Lane m = magnitude(s.x[i]);
    auto more = m > top;
    top = more ? m : top, largest = more ? s.x[i] : largest;
  }
  Lane d = largest / -8.0f, unit = plain_inverse(d);
  for (int i = 0; i < 32; ++i)
    s.take_values(i, truncated(lower(higher(s.x[i] * unit + 8.5f, every(0.0f)), every(15.0f))));
  s.take_floats(d, Lane{});
}
// One block after the other: minimum and maximum come out the same in any order.
static void round_q4_1(const float* values, size_t begin, size_t end, uint8_t* out) {
  for (size_t b = begin; b < end; ++b) {
    const float* x = values + 32 * b;
    Lane low, high, v;
    std::memcpy(&low, x, sizeof(low));
    high = low;
    for (int i = kWide; i < 32; i += kWide) {
      std::memcpy(&v, x + i, sizeof(v));
      low = lower(low, v), high = higher(high, v);
    }
    float from = low[0], to = high[0];
    for (int l = 1; l < kWide; ++l) from = std::min(from, low[l]), to = std::max(to, high[l]);
    from += 0.0f;
    float d = (to - from) / 15.0f, unit = std::fabs(d) > 0x1p-126f ? 1.0f / d : 0.0f;
    BlockFields f;
    for (int i = 0; i < 32; i += kWide) {
      std::memcpy(&v, x + i, sizeof(v));
      auto q = __builtin_convertvector(truncated(lower(higher((v - from) * unit + 0.5f, every(0.0f)), every(15.0f))), LaneByte);
      std::memcpy(f.q + i, &q, sizeof(q));
    }
    f.d = float_to_half(d), f.dmin = float_to_half(from);
    put_q4_1(f, out + 20 * b);
  }
}

// --- blocks

template <int N>
static void write_standing(void (*search)(Standing<N>&), void (*put)(const BlockFields&, uint8_t*), int bytes, const float* values,
                           const float* columns, size_t cols, size_t begin, size_t end, uint8_t* out) {
  Standing<N> standing;
  if (!columns) standing.weigh_the_same();
  for (size_t b = begin; b < end; b += kWide) {
    int count = int(std::min(size_t(kWide), end - b));
    standing.load(values, columns, cols, b, count);
    search(standing);
    for (int l = 0; l < count; ++l) put(standing.fields[l], out + (b + size_t(l)) * size_t(bytes));
  }
}

static void write_floats(Written type, const float* x, size_t n, uint8_t* out) {
  if (type == Written::F32) std::memcpy(out, x, n * 4);
  else
    for (size_t i = 0; i < n; ++i) {
      uint32_t u;
      std::memcpy(&u, x + i, 4);
      put16(out + 2 * i, type == Written::F16 ? float_to_half(x[i]) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16));
    }
}

// Blocks [begin, end) of a matrix of whole rows; columns: what each weighs, or null.
static void write_blocks(int type, const float* values, const float* columns, size_t cols, size_t begin, size_t end, uint8_t* out) {
  auto small = [&](void (*search)(Standing<32>&), void (*put)(const BlockFields&, uint8_t*), int bytes) {
    write_standing<32>(search, put, bytes, values, columns, cols, begin, end, out);
  };
  auto large = [&](void (*search)(Standing<256>&), void (*put)(const BlockFields&, uint8_t*), int bytes) {
    write_standing<256>(search, put, bytes, values, columns, cols, begin, end, out);
  };
  switch (Written(type)) {
    case Written::F32:
    case Written::F16:
    case Written::BF16: {
      size_t size = Written(type) == Written::F32 ? 4 : 2;
      return write_floats(Written(type), values + begin, end - begin, out + begin * size);
    }
    case Written::Q4_0: return small(columns ? search_symmetric<SearchQ4_0, 32> : round_q4_0, put_q4_0, 18);
    case Written::Q4_1:
      return columns ? small(search_offset<Search4Bits<true>>, put_q4_1, 20) : round_q4_1(values, begin, end, out);
    case Written::Q5_0: return small(search_symmetric<SearchQ5_0, 32>, put_q5_0, 22);
    case Written::Q5_1: return small(search_offset<Search5Bits<true>>, put_q5_1, 24);
    case Written::Q8_0: return small(columns ? search_symmetric<SearchQ8_0, 32> : round_q8_0, put_q8_0, 34);
    case Written::IQ4_NL: return small(search_symmetric<SearchIq4, 32>, put_q4_0, 18);
    case Written::Q2_K: return large(search_pairs<TypeQ2_K, 16>, put_q2_k, 84);
    case Written::Q3_K: return large(search_scales<TypeQ3_K, 16>, put_q3_k, 110);
    case Written::Q4_K: return large(search_pairs<TypeQ4_K, 32>, put_q4_k, 144);
    case Written::Q5_K: return large(search_pairs<TypeQ5_K, 32>, put_q5_k, 176);
    case Written::Q6_K: return large(search_scales<TypeQ6_K, 16>, put_q6_k, 210);
    case Written::IQ4_XS: return large(search_scales<TypeIQ4_XS, 32>, put_iq4_xs, 136);
    case Written::TQ1_0: return large(search_symmetric<SearchTernary, 256>, put_tq1_0, 54);
    case Written::TQ2_0: return large(search_symmetric<SearchTernary, 256>, put_tq2_0, 66);
  }
}
