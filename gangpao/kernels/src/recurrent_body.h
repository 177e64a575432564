// Included once by each recurrent_*.cpp after its SIMD layer, inside a namespace of its own.
//
// Tokens go through a state one after the other, each lane on its own, so a token's result does not depend on how a prompt was cut,
// on what runs beside it, or on the thread. A state of 128 x 128 is 64 KB: it stays in the second cache for all tokens of a step.
#include "exp16.h"

// e^x for x <= 0, within a few units of the last place: doubles, each operation rounded as IEEE 754 says.
static double exp_double(double x) {
  if (x < -700.0) return 0.0;
  constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: a sum with it is rounded to a whole number
  double n = (x * 1.4426950408889634 + kWhole) - kWhole;
  double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0;
  for (int i = 13; i > 0; --i) p = p * r / i + 1.0;
  int64_t bits = (int64_t(n) + 1023) << 52;
  double two;
  std::memcpy(&two, &bits, sizeof two);
  return p * two;
}

// log(1 + e^x)
static double softplus(double x) {
  double y = exp_double(x < 0 ? x : -x), s = y / (2.0 + y), square = s * s, sum = 0.0;
  for (int i = 33; i > 0; i -= 2) sum = sum * square + 1.0 / i;
  return (x > 0 ? x : 0.0) + 2.0 * s * sum;
}

static double sigmoid(double x) {
  double e = exp_double(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0) / (1.0 + e);
}

static inline F sigmoid16(F x) { return div(fset(1.0f), add(fset(1.0f), exp16(sub(fzero(), x)))); }

static void gate_row(const float* x, const float* gate, int n, float* out) {
  for (int i = 0; i < n; i += 16) fstore(out + i, mul(fload(x + i), sigmoid16(fload(gate + i))));
}

// x / (1 + e^-2u) is x (1 + tanh u) / 2; n is a multiple of 16.
static void geglu_row(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    F x = fload(gate + i), cube = mul(mul(x, x), x);
    F u = mul(fma(cube, fset(0.044715f), x), fset(2 * 0.7978845608f));
    fstore(out + i, mul(mul(x, sigmoid16(u)), fload(up + i)));
  }
}

// silu(convolution) of channels [first, first + count) of one token; window: the inputs that its taps look at.
static void convolve(const DeltaShape& s, const float* const* window, int first, int count, float* out) {
  for (int c = 0; c < count; c += 16) {
    F y = fzero();
    for (int j = 0; j < s.taps; ++j) y = fma(fload(s.filter + size_t(j) * s.channels() + first + c), fload(window[j] + first + c), y);
    fstore(out + c, mul(y, sigmoid16(y)));
  }
}

static float squares(const float* x, int n) {
  F sum = fzero();
  for (int i = 0; i < n; i += 16) sum = fma(fload(x + i), fload(x + i), sum);
  return fsum(sum);
}

static void scale(float* x, int n, float factor) {
  for (int i = 0; i < n; i += 16) fstore(x + i, mul(fload(x + i), fset(factor)));
}

// C * 16 columns of the state of one value head: decayed, corrected by what k reads of it, read by q (null: not read).
template <int C>
static void advance_columns(const DeltaShape& s, float* state, const float* q, const float* k, const float* v, float decay, float beta,
                            float* out) {
  F read[C], wrong[C], y[C];
  for (int i = 0; i < C; ++i) read[i] = fzero(), y[i] = fzero();
  for (int d = 0; d < s.k_dim; ++d)
    for (int i = 0; i < C; ++i) {
      float* at = state + size_t(d) * s.v_dim + 16 * i;
      F x = mul(fload(at), fset(decay));
      fstore(at, x);
      read[i] = fma(fset(k[d]), x, read[i]);
    }
  for (int i = 0; i < C; ++i) wrong[i] = mul(sub(fload(v + 16 * i), read[i]), fset(beta));
  for (int d = 0; d < s.k_dim; ++d)
    for (int i = 0; i < C; ++i) {
      float* at = state + size_t(d) * s.v_dim + 16 * i;
      F x = fma(fset(k[d]), wrong[i], fload(at));
      fstore(at, x);
      if (q) y[i] = fma(fset(q[d]), x, y[i]);
    }
  if (q)
    for (int i = 0; i < C; ++i) fstore(out + 16 * i, y[i]);
}

static void advance(const DeltaShape& s, float* state, const float* q, const float* k, const float* v, float decay, float beta, float* out) {
  int c = 0;
  for (; c + 64 <= s.v_dim; c += 64) advance_columns<4>(s, state + c, q, k, v + c, decay, beta, out + c);
  for (; c < s.v_dim; c += 16) advance_columns<1>(s, state + c, q, k, v + c, decay, beta, out + c);
}

// What belongs to one key head: f(first channel, count) for its q, its k and the values of its value heads.
template <class T>
static void each_span(const DeltaShape& s, int head, T f) {
  f(head * s.k_dim, s.k_dim);
  f(s.key_size() + head * s.k_dim, s.k_dim);
  for (int h = head; h < s.v_heads; h += s.k_heads) f(2 * s.key_size() + h * s.v_dim, s.v_dim);
}

static void copy_heads(const DeltaShape& s, int head, const float* from, float* to) {
  size_t size = size_t(s.k_dim) * s.v_dim;
  for (int h = head; h < s.v_heads; h += s.k_heads)
    if (from) std::memcpy(to + size * h, from + size * h, size * sizeof(float));
    else std::memset(to + size * h, 0, size * sizeof(float));
}

// The working space of a thread: a state, the old tail, and q, k and v of a token.
static size_t scratch_floats(const DeltaShape& s) {
  return s.state_floats() + s.tail_floats() + 2 * size_t(s.k_dim) + 2 * size_t(s.v_dim) + 64;
}

static void one_token(const DeltaShape& s, const float* const* window, int head, float* state, float* work, float* out) {
  float *q = work, *k = q + s.k_dim, *v = k + s.k_dim, *y = v + s.v_dim;
  const float* row = window[s.taps - 1];
  if (out) {
    convolve(s, window, head * s.k_dim, s.k_dim, q);
    scale(q, s.k_dim, 1.0f / std::sqrt((squares(q, s.k_dim) + 1e-6f) * float(s.k_dim)));
  }
  convolve(s, window, s.key_size() + head * s.k_dim, s.k_dim, k);
  scale(k, s.k_dim, 1.0f / std::sqrt(squares(k, s.k_dim) + 1e-6f));
  for (int h = head; h < s.v_heads; h += s.k_heads) {
    const float *z = row + s.channels() + h * s.v_dim, *two = row + s.channels() + s.value_size() + h;
    double decay = exp_double(double(s.a[h]) * softplus(double(two[s.v_heads]) + double(s.dt[h])));
    convolve(s, window, 2 * s.key_size() + h * s.v_dim, s.v_dim, v);
    advance(s, state + size_t(h) * s.k_dim * s.v_dim, out ? q : nullptr, k, v, float(decay), float(sigmoid(double(two[0]))), y);
    if (!out) continue;
    F r = fset(1.0f / std::sqrt(squares(y, s.v_dim) / float(s.v_dim) + s.eps));
    for (int i = 0; i < s.v_dim; i += 16) {
      F g = fload(z + i), x = mul(mul(fload(y + i), r), fload(s.norm + i));
      fstore(out + h * s.v_dim + i, mul(x, mul(g, sigmoid16(g))));
    }
  }
}

static void delta_head(const DeltaShape& s, const DeltaRun& run, int head, float* scratch) {
  float *spare = scratch, *tail = spare + s.state_floats(), *work = tail + s.tail_floats();
  const Commit& own = run.commits[run.num_commits - 1];
  float* state = own.state;
  int kept = s.taps - 1;
  for (int j = 0; j < kept; ++j)  // the own state's is written while this one is still looked at
    each_span(s, head, [&](int first, int count) {
      float* to = tail + size_t(j) * s.channels() + first;
      if (run.from) std::memcpy(to, run.from + s.state_floats() + size_t(j) * s.channels() + first, size_t(count) * sizeof(float));
      else std::memset(to, 0, size_t(count) * sizeof(float));
    });
  if (run.from != state) copy_heads(s, head, run.from, state);
  auto input = [&](int t) { return t < 0 ? tail + size_t(t + kept) * s.channels() : run.rows[t]; };
  const Commit *next = run.commits, *last = next + run.num_commits;
  for (int t = 0; t < run.tokens; ++t) {
    const float* window[8];
    for (int j = 0; j < s.taps; ++j) window[j] = input(t - kept + j);
    one_token(s, window, head, state, work, t < run.skipped ? nullptr : run.out[t - run.skipped]);
    for (; next != last && next->after == t + 1; ++next) {
      if (next->state != state) copy_heads(s, head, state, next->state);
      for (int j = 0; j < kept; ++j)
        each_span(s, head, [&](int first, int count) {
          std::memcpy(next->state + s.state_floats() + size_t(j) * s.channels() + first, input(t + 1 - kept + j) + first,
                      size_t(count) * sizeof(float));
        });
      if (next + 1 == last && t + 1 < run.tokens) {  // what follows may be taken back
        copy_heads(s, head, state, spare);
        state = spare;
      }
    }
  }
}

constexpr DeltaKernels make_delta(const char* name) { return {name, scratch_floats, delta_head, gate_row, geglu_row}; }
