// Training in bfloat16: what lies between the products, forwards and backwards, each number read and written once. Numbers of a row are
// whole groups of 16.

static inline F logistic(F x) { return div(fset(1.0f), add(fset(1.0f), exp16(sub(fzero(), x)))); }

// out = gate / (1 + e^-gate) * up
static void swiglu_bf16(const uint16_t* gate, const uint16_t* up, int n, uint16_t* out) {
  for (int i = 0; i < n; i += 16) {
    F g = bf16load(gate + i);
    bf16store(out + i, mul(mul(g, logistic(g)), bf16load(up + i)));
  }
}

// d: gradient of the result. silu' = s (1 + g (1 - s)), s = 1 / (1 + e^-g)
static void swiglu_back_bf16(const uint16_t* gate, const uint16_t* up, const uint16_t* d, int n, uint16_t* d_gate, uint16_t* d_up) {
  for (int i = 0; i < n; i += 16) {
    F g = bf16load(gate + i), s = logistic(g), dy = bf16load(d + i);
    F slope = mul(s, fma(g, sub(fset(1.0f), s), fset(1.0f)));
    bf16store(d_gate + i, mul(mul(dy, bf16load(up + i)), slope));
    bf16store(d_up + i, mul(dy, mul(g, s)));
  }
}

// out = x r weight, r = 1 / sqrt(mean(x^2) + eps), which is returned
static float rmsnorm_bf16(const uint16_t* x, const float* weight, int n, float eps, uint16_t* out) {
  F squares = fzero();
  for (int i = 0; i < n; i += 16) {
    F v = bf16load(x + i);
    squares = fma(v, v, squares);
  }
  float r = 1.0f / std::sqrt(fsum(squares) / float(n) + eps);
  for (int i = 0; i < n; i += 16) bf16store(out + i, mul(mul(bf16load(x + i), fset(r)), fload(weight + i)));
  return r;
}

// d: gradient of the result. dx = r (d w - x r^2 mean(d w x)); d_weight += d x r, unless it is null
static void rmsnorm_back_bf16(const uint16_t* x, const uint16_t* d, const float* weight, float r, int n, uint16_t* dx, float* d_weight) {
  F along = fzero();
  for (int i = 0; i < n; i += 16) along = fma(mul(bf16load(d + i), fload(weight + i)), bf16load(x + i), along);
  F c = fset(fsum(along) / float(n) * r * r), scale = fset(r);
  for (int i = 0; i < n; i += 16) {
    F v = bf16load(x + i), g = bf16load(d + i);
    bf16store(dx + i, mul(fnma(v, c, mul(g, fload(weight + i))), scale));
    if (d_weight) fstore(d_weight + i, fma(mul(g, v), scale, fload(d_weight + i)));
  }
}

// A head times scale, its pairs (i, i + half) turned by the angles; and its gradient, turned back.
static void turn_bf16(const uint16_t* x, const float* cos, const float* sin, int half, float scale, float* out) {
  for (int i = 0; i < half; i += 16) {
    F a = bf16load(x + i), b = bf16load(x + half + i), c = mul(fload(cos + i), fset(scale)), s = mul(fload(sin + i), fset(scale));
    fstore(out + i, fnma(b, s, mul(a, c)));
    fstore(out + half + i, fma(a, s, mul(b, c)));
  }
}

static void turn_back_bf16(const uint16_t* d, const float* cos, const float* sin, int half, float scale, uint16_t* out) {
  for (int i = 0; i < half; i += 16) {
    F a = bf16load(d + i), b = bf16load(d + half + i), c = mul(fload(cos + i), fset(scale)), s = mul(fload(sin + i), fset(scale));
    bf16store(out + i, fma(b, s, mul(a, c)));
    bf16store(out + half + i, fnma(a, s, mul(b, c)));
  }
}
