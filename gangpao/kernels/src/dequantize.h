// GGUF rows to float32: integers of a block (blocks.h), then d * q, d * q + m or d * scale * q - dmin * min, each step rounded as it is
// written. The loops have fixed lengths and no branches, so every compiler makes vectors of them.

template <int N, class Q>
static inline void scaled(const uint8_t* q, float d, int zero, float* out) {
  for (int i = 0; i < N; ++i) out[i] = d * float(int(Q(q[i])) - zero);
}
template <int N>
static inline void shifted(const uint8_t* q, float d, float m, float* out) {
  for (int i = 0; i < N; ++i) out[i] = d * float(int(q[i])) + m;
}

// Four bits are a place in kCodes.
static inline void coded(const uint8_t* q, float d, float* out) {
  uint8_t v[kBlock];
  for (int i = 0; i < kBlock; ++i) v[i] = kCodes[q[i]];
  scaled<kBlock, uint8_t>(v, d, kCodesZero, out);
}

static void row_to_floats(const Row256& r, const Format& f, int blocks, float* out) {
  float d = half_to_float(r.d[0]), m = f.style == Style::K || f.style == Style::K16_MIN ? half_to_float(r.m[0]) : 0.0f;
  for (int b = 0; b < blocks; ++b, out += kBlock) {
    const uint8_t* q = r.q + kBlock * b;
    switch (f.style) {
      case Style::F16:
        if (f.values == Values::S8) scaled<kBlock, int8_t>(q, half_to_float(r.d[b]), 0, out);
        else if (f.values == Values::IQ4) coded(q, half_to_float(r.d[b]), out);
        else scaled<kBlock, uint8_t>(q, half_to_float(r.d[b]), f.zero, out);
        break;
      case Style::F16_MIN: shifted<kBlock>(q, half_to_float(r.d[b]), half_to_float(r.m[b]), out); break;
      case Style::K: shifted<kBlock>(q, d * float(r.scale[b]), -(m * float(r.min[b])), out); break;
      case Style::K16:
        for (int h = 0; h < 2; ++h)
          scaled<kBlock / 2, uint8_t>(q + 16 * h, d * float(int8_t(r.scale[2 * b + h])), f.zero, out + 16 * h);
        break;
      case Style::K16_MIN:
        for (int h = 0; h < 2; ++h) {
          uint8_t s = r.scale[2 * b + h];
          shifted<kBlock / 2>(q + 16 * h, d * float(s & 15), -(m * float(s >> 4)), out + 16 * h);
        }
        break;
      case Style::K32: coded(q, d * float(int8_t(r.scale[b])), out); break;
      case Style::K256: scaled<kBlock, uint8_t>(q, d, f.zero, out); break;
      case Style::FLOAT: break;
    }
  }
}

static void floats_to_floats(FloatType type, const uint8_t* p, int cols, float* out) {
  if (type == FloatType::F32) {
    std::memcpy(out, p, size_t(cols) * 4);
    return;
  }
  int c = 0;
  for (; c + 16 <= cols; c += 16) {
    uint16_t x[16];
    std::memcpy(x, p + 2 * size_t(c), 32);
    fstore(out + c, type == FloatType::F16 ? hload(x) : bf16load(x));
  }
  for (; c < cols; ++c) {
    uint16_t x = u16(p + 2 * size_t(c));
    uint32_t wide = uint32_t(x) << 16;
    if (type == FloatType::F16) out[c] = half_to_float(x);
    else std::memcpy(out + c, &wide, 4);
  }
}

// One row of `cols` weights; source: which reader.
static void dequantize_row(int source, const uint8_t* p, int cols, float* out) {
  const Reader& reader = kReaders[source];
  const SourceType& type = reader.type;
  if (!reader.read) return floats_to_floats(type.float_type, p, cols, out);
  int blocks = cols / kBlock;
  Row256 row;
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = std::min(blocks - b0, kSuper);
    if (type.block == 256) reader.read(p, row, 0), p += type.bytes;
    else
      for (int b = 0; b < n; ++b, p += type.bytes) reader.read(p, row, b);
    row_to_floats(row, type.format, n, out + size_t(b0) * kBlock);
  }
}
