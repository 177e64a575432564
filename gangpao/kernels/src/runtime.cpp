#include "runtime.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gangpao {

namespace {

int round_up(int x, int m) { return (x + m - 1) / m * m; }

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

#if defined(__x86_64__)
// AMX state is off until a process asks Linux for it.
bool amx_allowed() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  bool tile = d >> 24 & 1, int8 = d >> 25 & 1;
  constexpr int kRequest = 0x1023, kTileData = 18;
  return tile && int8 && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Kernels* find_kernels(const std::string& name) {
  if (name == "portable") return &portable_kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vnni");
  if (name == "avx2" && avx2) return &avx2_kernels;
  if (name == "avx512" && avx512) return &avx512_kernels;
  if (name == "amx" && avx512 && amx_allowed()) return &amx_kernels;
#endif
  return nullptr;
}

const char* const kIsaNames[] = {"amx", "avx512", "avx2", "portable"};

// Pieces per thread: enough to even out a slow core, few enough that the counter costs nothing.
int chunk_for(int items, int threads) { return std::max(1, items / (threads * 8)); }

}  // namespace

Array::Array(int r, int c) : rows(r), cols(c), stride(round_up(c, 16)) {
  require(r > 0 && c > 0, "Array: rows and cols must be positive");
  pages = std::make_shared<Pages>(size_t(r) * stride * sizeof(float), false);
  data = reinterpret_cast<float*>(pages->data());
}

Activation::Activation(int capacity_, int cols_, bool keep)
    : capacity(round_up(capacity_, kTokenPad)), cols(cols_), keep_float(keep || cols_ % kBlock), quantized(cols_ % kBlock == 0) {
  require(capacity_ > 0 && cols_ > 0, "Activation: capacity and cols must be positive");
  size_t blocks = size_t(cols) / kBlock;
  f_stride = round_up(cols, 16);
  // An odd number of cache lines between rows keeps 16 rows of a tile out of one another's cache sets.
  q.q_stride = round_up(cols, 64) + (round_up(cols, 64) / 64 % 2 ? 0 : 64);
  size_t floats = keep_float ? size_t(capacity) * f_stride * sizeof(float) : 0;
  size_t bytes = quantized ? size_t(capacity) * q.q_stride : 0;
  size_t per_block = quantized ? blocks * capacity * sizeof(float) : 0;
  pages = std::make_shared<Pages>(floats + bytes + 4 * per_block, false);
  uint8_t* p = pages->data();
  if (keep_float) f = reinterpret_cast<float*>(p);
  p += floats;
  if (!quantized) return;
  q.q = reinterpret_cast<int8_t*>(p), p += bytes;
  q.scale = reinterpret_cast<float*>(p), p += per_block;
  q.sum = reinterpret_cast<float*>(p), p += per_block;
  q.isum = reinterpret_cast<int32_t*>(p);
}

void Activation::begin(int tokens) {
  require(tokens > 0 && tokens <= capacity, "more tokens than this buffer holds");
  n = tokens;
  q.token_stride = tokens <= 8 ? tokens : round_up(tokens, kTokenPad);
}

Acts Activation::view() const {
  return {n, cols, f, f_stride, q.q, q.q_stride, q.token_stride, q.scale, q.sum, q.isum};
}

Linear::Linear(std::vector<std::shared_ptr<Matrix>> p) : parts(std::move(p)) {
  require(!parts.empty(), "Linear: no matrices");
  cols = parts[0]->w.cols;
  for (const auto& m : parts) {
    require(m->w.cols == cols, "Linear: matrices with different numbers of columns");
    rows += m->w.rows;
    nbytes += m->nbytes;
    needs_float |= m->w.format.style == Style::FLOAT;
  }
}

Cache::Cache(int l, int k, int d, int c, bool i8) : layers(l), kv_heads(k), head_dim(d), capacity(round_up(c, 64)), int8(i8) {
  require(l > 0 && k > 0 && d > 0 && c > 0, "Cache: sizes must be positive");
  require(d % 16 == 0, "Cache: head_dim must be a multiple of 16");
  values_ = size_t(capacity) * d * (i8 ? 1 : 2);
  scales_ = i8 ? size_t(capacity) * (d / 16) * 2 : 0;
  head_bytes_ = 2 * (values_ + scales_);
  pages = std::make_shared<Pages>(head_bytes_ * l * k, false);
}

size_t Cache::bytes_needed(int l, int k, int d, int c, bool i8) {
  size_t positions = size_t(round_up(c, 64));
  return 2 * positions * l * k * (i8 ? size_t(d) + d / 16 * 2 : size_t(d) * 2);
}

HeadCache Cache::head(int layer, int h) const {
  uint8_t* p = pages->data() + (size_t(layer) * kv_heads + h) * head_bytes_;
  return {p, p + values_, reinterpret_cast<uint16_t*>(p + 2 * values_), reinterpret_cast<uint16_t*>(p + 2 * values_ + scales_),
          head_dim, int8};
}

Runtime& Runtime::get() {
  static Runtime* r = new Runtime();  // never destroyed: its threads must not outlive its members at exit
  return *r;
}

Runtime::Runtime() {
  kernels = nullptr;
  for (const char* name : kIsaNames)
    if (!kernels) kernels = find_kernels(name);
  set_threads(1);
}

void Runtime::set_threads(int n) {
  require(n >= 1 && n <= 1024, "the number of threads must be 1 to 1024");
  if (pool && pool->threads() == n) return;
  pool.reset();
  pool = std::make_unique<Pool>(n);
  scratch_.resize(size_t(n));
}

void Runtime::set_isa(const std::string& name) {
  const Kernels* k = find_kernels(name);
  if (!k) throw std::invalid_argument("instruction set '" + name + "' is not available on this machine");
  kernels = k;
}

std::vector<std::string> Runtime::available() {
  std::vector<std::string> r;
  for (const char* name : kIsaNames)
    if (find_kernels(name)) r.push_back(name);
  return r;
}

uint8_t* Runtime::scratch(int thread, size_t bytes) {
  auto& s = scratch_[size_t(thread)];
  if (s.size() < bytes + 64) s.resize(bytes + 64);
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(s.data()) + 63) / 64 * 64);
}

void linear(const Linear& w, const Activation& x, Array& out, bool add, float scale) {
  require(x.cols == w.cols, "linear: input width differs from the weight's");
  require(x.n > 0 && x.n <= out.rows && w.rows <= out.cols, "linear: output is too small");
  Runtime& rt = Runtime::get();
  Acts a = x.view();
  int items = 0;
  for (const auto& m : w.parts) {
    bool is_float = m->w.format.style == Style::FLOAT;
    require(is_float ? x.keep_float : x.quantized, "linear: the input was not kept in the form this weight needs");
    items += m->w.num_panels();
  }
  auto job = [&](int begin, int end, int thread) {
    uint8_t* scratch = rt.scratch(thread, rt.kernels->scratch_bytes(w.cols));
    int first = 0, column = 0;
    for (const auto& m : w.parts) {
      int n = m->w.num_panels(), b = std::max(begin - first, 0), e = std::min(end - first, n);
      Out o{out.data + column, out.stride, add, scale};
      if (b < e) rt.kernels->linear(m->w, a, o, b, e, scratch);
      first += n, column += m->w.rows;
    }
  };
  rt.pool->run(items, chunk_for(items, rt.pool->threads()), job);
}

// Runs f(token) for n tokens; a few tokens are not worth waking anybody.
template <class F>
static void each_token(int n, F f) {
  Pool& pool = *Runtime::get().pool;
  auto job = [&](int begin, int end, int) {
    for (int t = begin; t < end; ++t) f(t);
  };
  pool.run(n, n < 4 ? n : chunk_for(n, pool.threads()), job);
}

void rmsnorm(const Array& x, int n, const Array& weight, float eps, Activation& out) {
  require(x.cols == out.cols && weight.cols == x.cols && n <= x.rows, "rmsnorm: shapes differ");
  out.begin(n);
  const Kernels& k = *Runtime::get().kernels;
  each_token(n, [&](int t) {
    static thread_local std::vector<float> row;
    float* y = out.f ? out.f + size_t(t) * out.f_stride : (row.resize(size_t(x.stride)), row.data());
    k.rmsnorm(x.row(t), weight.data, x.cols, eps, y);
    if (out.quantized) k.quantize(y, x.cols, out.q, t);
  });
}

void quantize(const Array& x, int n, Activation& out) {
  require(x.cols == out.cols && n <= x.rows, "quantize: shapes differ");
  out.begin(n);
  const Kernels& k = *Runtime::get().kernels;
  each_token(n, [&](int t) {
    if (out.f) std::memcpy(out.f + size_t(t) * out.f_stride, x.row(t), size_t(x.cols) * sizeof(float));
    if (out.quantized) k.quantize(x.row(t), x.cols, out.q, t);
  });
}

void swiglu(const Array& gate_up, int n, Activation& out) {
  require(gate_up.cols == 2 * out.cols && n <= gate_up.rows, "swiglu: shapes differ");
  out.begin(n);
  const Kernels& k = *Runtime::get().kernels;
  each_token(n, [&](int t) {
    static thread_local std::vector<float> row;
    float* y = out.f ? out.f + size_t(t) * out.f_stride : (row.resize(size_t(round_up(out.cols, 16))), row.data());
    k.swiglu(gate_up.row(t), gate_up.row(t) + out.cols, out.cols, y);
    if (out.quantized) k.quantize(y, out.cols, out.q, t);
  });
}

void rope_append(Array& qkv, int n, const AttentionSpec& spec, const Array& cos, const Array& sin, Cache& cache, int layer,
                 int start) {
  const AttentionShape& s = spec.shape;
  require(qkv.cols == (s.num_heads + 2 * s.num_kv_heads) * s.head_dim && n <= qkv.rows, "rope_append: qkv has another shape");
  require(cos.rows >= n && sin.rows >= n && 2 * cos.cols >= s.rope_dim && 2 * sin.cols >= s.rope_dim, "rope_append: angles");
  require(start >= 0 && start + n <= cache.capacity && layer >= 0 && layer < cache.layers, "rope_append: outside the cache");
  require(cache.kv_heads == s.num_kv_heads && cache.head_dim == s.head_dim, "rope_append: cache of another shape");
  const Kernels& k = *Runtime::get().kernels;
  std::vector<HeadCache> heads;
  for (int h = 0; h < s.num_kv_heads; ++h) heads.push_back(cache.head(layer, h));
  each_token(n, [&](int t) { k.rope_append(qkv.row(t), s, cos.row(t), sin.row(t), start + t, heads.data()); });
}

void attend(const Array& qkv, int n, const AttentionSpec& spec, const Cache& cache, int layer, int start, Array& result,
            Activation& out) {
  const AttentionShape& s = spec.shape;
  require(result.rows >= n && result.cols == s.num_heads * s.head_dim, "attend: result has another shape");
  require(start >= 0 && start + n <= cache.capacity && layer >= 0 && layer < cache.layers, "attend: outside the cache");
  Runtime& rt = Runtime::get();
  int group = s.num_heads / s.num_kv_heads;
  // A piece of work is a KV head and a few tokens, so that its rows share what they load. A single token with
  // fewer KV heads than threads is cut by query heads instead.
  int cut = n == 1 && s.num_kv_heads < rt.pool->threads() ? group : 1;
  while (group % cut || (cut > 1 && s.num_kv_heads * cut > 2 * rt.pool->threads())) --cut;
  int tokens = std::max(1, std::min(16, 64 / group)), spans = (n + tokens - 1) / tokens, heads = group / cut;
  auto job = [&](int begin, int end, int) {
    for (int i = begin; i < end; ++i) {
      int part = i % (s.num_kv_heads * cut), t = i / (s.num_kv_heads * cut) * tokens;
      int h = part / cut, q = h * group + part % cut * heads;
      rt.kernels->attend(cache.head(layer, h), qkv.row(t) + size_t(q) * s.head_dim, qkv.stride,
                         result.row(t) + size_t(q) * s.head_dim, result.stride, heads, std::min(tokens, n - t), start + t);
    }
  };
  rt.pool->run(spans * s.num_kv_heads * cut, 1, job);
  quantize(result, n, out);
}

std::shared_ptr<Matrix> pack(const uint8_t* raw, size_t raw_bytes, const std::string& type, int rows, int cols,
                             const int32_t* order, Arena& arena) {
  const SourceType* source = find_source(type);
  if (!source) throw std::invalid_argument("weights of type " + type + " cannot be packed");
  require(rows > 0 && cols > 0 && cols % source->block == 0, "pack: columns are not whole blocks");
  require(raw_bytes == size_t(rows) * (size_t(cols) / source->block) * source->bytes, "pack: wrong number of bytes");
  if (order)
    for (int i = 0; i < rows; ++i) require(order[i] >= 0 && order[i] < rows, "pack: row order out of range");
  auto m = std::make_shared<Matrix>();
  m->w.format = source->format;
  m->w.float_type = source->float_type;
  m->w.rows = rows, m->w.cols = cols;
  m->w.panel_stride = source->format.style == Style::FLOAT ? size_t(cols) * kPanelRows * source->bytes
                                                           : panel_bytes(source->format, cols / kBlock);
  m->nbytes = m->w.panel_stride * m->w.num_panels();
  Arena::Piece piece = arena.take(m->nbytes);
  m->pages = piece.pages;
  m->w.data = piece.data;
  auto job = [&](int begin, int end, int) { pack_panels(*source, raw, order, m->w, piece.data, begin, end); };
  Runtime::get().pool->run(m->w.num_panels(), 4, job);
  return m;
}

double read_bandwidth(double seconds) {
  constexpr size_t kBytes = size_t(512) << 20, kPiece = size_t(1) << 20;
  Pages memory(kBytes, true);
  std::memset(memory.data(), 1, kBytes);
  std::atomic<uint64_t> sink{0};
  auto job = [&](int begin, int end, int) {
    uint64_t s[8] = {};
    const uint64_t* p = reinterpret_cast<const uint64_t*>(memory.data() + size_t(begin) * kPiece);
    for (size_t i = 0, n = size_t(end - begin) * kPiece / 8; i < n; i += 8)
      for (int j = 0; j < 8; ++j) s[j] ^= p[i + j];
    for (uint64_t x : s) sink += x;
  };
  double best = 0, spent = 0;
  for (int round = 0; round < 3 || spent < seconds; ++round) {
    auto from = std::chrono::steady_clock::now();
    Runtime::get().pool->run(int(kBytes / kPiece), 4, job);
    double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
    spent += t;
    best = std::max(best, kBytes / t);
  }
  return best / 1e9;
}

}  // namespace gangpao
