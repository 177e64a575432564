#include "runtime.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <type_traits>

#include "arm_features.h"
#include "each_row.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
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
#elif defined(__aarch64__)
  static const ArmFeatures has = arm_features();
  if (name == "neon") return &neon_kernels;
  if (name == "dotprod" && has.dotprod) return &dotprod_kernels;
  if (name == "i8mm" && has.dotprod && has.i8mm) return &i8mm_kernels;
#endif
  return nullptr;
}

// The family of an AMD processor (25 is Zen 3 and Zen 4, 26 is Zen 5); 0 for one of another maker.
int amd_family() {
#if defined(__x86_64__)
  static const int family = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != 0x68747541 || !__get_cpuid(1, &a, &b, &c, &d)) return 0;  // "Auth"enticAMD
    return int((a >> 8 & 15) + (a >> 20 & 255));
  }();
  return family;
#else
  return 0;
#endif
}

const char* const kIsaNames[] = {"amx", "avx512", "avx2", "i8mm", "dotprod", "neon", "portable"};  // the best first

// The products of fewer rows wait for memory themselves; more rows are a prompt, beside whose products adapters are small.
constexpr int kRowsThatAsk = 4, kRowsOfPrompt = 33;
constexpr int kPanels = 2;  // smallest piece of a linear layer: AMX takes panels in pairs

}  // namespace

Array::Array(int r, int c) : rows(r), cols(c), stride(round_up(c, 16)) {
  require(r > 0 && c > 0, "Array: rows and cols must be positive");
  pages = std::make_shared<Pages>(size_t(r) * stride * sizeof(float), false);
  data = reinterpret_cast<float*>(pages->data());
}

Linear::Linear(std::vector<std::shared_ptr<Matrix>> p) : parts(std::move(p)) {
  require(!parts.empty(), "Linear: no matrices");
  cols = parts[0]->w.cols;
  for (const auto& m : parts) {
    require(m->w.cols == cols, "Linear: matrices with different numbers of columns");
    rows += m->w.rows;
    nbytes += m->nbytes;
    Style style = m->w.format.style;
    if (style == Style::FLOAT) needs_float = true;
    else if (style == Style::F16 || style == Style::F16_MIN) needs_blocks = true;
    else needs_supers = true;
  }
}

Activation::Activation(int capacity_, int cols_, const std::vector<std::shared_ptr<Linear>>& readers, bool keep_float)
    : capacity(round_up(capacity_, kTokenPad)), cols(cols_), floats(keep_float) {
  require(capacity_ > 0 && cols_ > 0, "Activation: capacity and cols must be positive");
  for (const auto& r : readers) {
    require(r->cols == cols, "Activation: a reader has another number of columns");
    floats |= r->needs_float, blocks |= r->needs_blocks, supers |= r->needs_supers;
  }
  acts.cols = cols;
  acts.f_stride = round_up(cols, 16);
  // An odd number of cache lines between rows keeps 16 rows of a tile out of one another's cache sets.
  int stride = round_up(cols, 64) + (round_up(cols, 64) / 64 % 2 ? 0 : 64);
  size_t rows = size_t(capacity), q = rows * stride, per_block = rows * (size_t(cols) / kBlock) * 4;
  size_t per_super = rows * (size_t(cols) / kSuperColumns);
  auto lay_out = [&](uintptr_t at) {
    auto take = [&at](auto*& member, size_t bytes) {
      member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(at);
      at += (bytes + 63) / 64 * 64;
    };
    float* f = nullptr;
    if (floats) take(f, rows * acts.f_stride * sizeof(float));
    acts.f = f;
    acts.blocks.q_stride = acts.supers.q_stride = stride;
    if (blocks) {
      take(acts.blocks.q, q), take(acts.blocks.scale, per_block), take(acts.blocks.sum, per_block);
      take(acts.blocks.isum, per_block);
    }
    if (supers)
      take(acts.supers.q, q), take(acts.supers.scale, per_super * 4), take(acts.supers.sums, per_super * kSums * 2);
    return at;
  };
  pages = std::make_shared<Pages>(std::max<size_t>(lay_out(0), 64), false);  // once to measure, once to place
  lay_out(reinterpret_cast<uintptr_t>(pages->data()));
}

void Activation::begin(int tokens) {
  require(tokens > 0 && tokens <= capacity, "more tokens than this buffer holds");
  n = acts.n = tokens;
  acts.blocks.token_stride = acts.supers.token_stride = tokens <= 8 ? tokens : round_up(tokens, kTokenPad);
}

void Activation::fill(const float* x, int token) const {
  const Kernels& k = *Runtime::get().kernels;
  if (blocks) k.quantize_blocks(x, cols, acts.blocks, token);
  if (supers) k.quantize_supers(x, cols, acts.supers, token);
}

bool Activation::offers(const Linear& w) const {
  return floats >= w.needs_float && blocks >= w.needs_blocks && supers >= w.needs_supers;
}

namespace {

Kept kept_of(int bits) {
  require(bits == 16 || bits == 8 || bits == 4, "Cache: keys and values have 16, 8 or 4 bits");
  return bits == 16 ? Kept::F16 : bits == 8 ? Kept::INT8 : Kept::INT4;
}

// Bytes of the numbers, and of the scales, of one head's keys or values in a page.
size_t number_bytes(int head_dim, int bits) { return size_t(kPage) * head_dim * bits / 8; }
size_t scale_bytes(int head_dim, int bits) {
  return bits == 16 ? 0 : size_t(kPage) * (head_dim / (bits == 8 ? kInt8Group : kInt4Group)) * sizeof(uint16_t);
}

}  // namespace

Cache::Cache(int l, int k, int d, int n, int key_bits, int value_bits)
    : layers(l), kv_heads(k), head_dim(d), num_pages(n), keys(kept_of(key_bits)), values(kept_of(value_bits)) {
  require(l > 0 && k > 0 && d > 0 && n > 0, "Cache: sizes must be positive");
  require(d % 16 == 0, "Cache: head_dim must be a multiple of 16");
  require(d % kInt4Group == 0 || (key_bits != 4 && value_bits != 4), "Cache: with 4 bits head_dim must be a multiple of 32");
  key_bytes_ = number_bytes(d, key_bits), value_bytes_ = number_bytes(d, value_bits);
  key_scales_ = scale_bytes(d, key_bits);
  head_bytes_ = key_bytes_ + value_bytes_ + key_scales_ + scale_bytes(d, value_bits);
  page_bytes_ = page_bytes(l, k, d, key_bits, value_bits);
  pages = std::make_shared<Pages>(page_bytes_ * n, false);
}

size_t Cache::page_bytes(int l, int k, int d, int key_bits, int value_bits) {
  size_t head = 0;
  for (int bits : {key_bits, value_bits}) head += number_bytes(d, bits) + scale_bytes(d, bits);
  return head * l * k;
}

HeadPages Cache::head(int layer, int h) const {
  uint8_t* p = pages->data() + (size_t(layer) * kv_heads + h) * head_bytes_;
  uint8_t* scales = p + key_bytes_ + value_bytes_;
  HeadCache first{p, p + key_bytes_, reinterpret_cast<uint16_t*>(scales), reinterpret_cast<uint16_t*>(scales + key_scales_),
                  head_dim, keys, values};
  return {first, page_bytes_};
}

uint8_t* Cache::page(int i) const {
  require(i >= 0 && i < num_pages, "Cache: no such page");
  return pages->data() + page_bytes_ * size_t(i);
}

void Cache::copy_page(int from, int to) {
  require(from != to, "copy_page: no such page");
  std::memcpy(page(to), page(from), page_bytes_);
}

void Rows::clear() { pages_.clear(), tables_.clear(), owner_.clear(), position_.clear(); }

void Rows::add(const std::vector<int32_t>& pages, int start, int n) {
  require(start >= 0 && n > 0 && size_t(start) + n <= pages.size() * kPage, "Rows: a position has no page");
  for (int t = 0; t < n; ++t) owner_.push_back(int(tables_.size())), position_.push_back(start + t);
  tables_.emplace_back(pages_.size(), pages.size());
  pages_.insert(pages_.end(), pages.begin(), pages.end());
}

std::vector<Place> Rows::places(int num_pages) const {
  for (int32_t page : pages_) require(page >= 0 && page < num_pages, "Rows: no such page");
  std::vector<Place> out;
  for (size_t i = 0; i < owner_.size(); ++i) out.push_back({position_[i], pages_.data() + tables_[owner_[i]].first});
  return out;
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

// Measured with a matrix in memory and one token, GB/s of one core. Sapphire Rapids: both together read 1.1 x as fast as
// either alone. Zen 4: the hardware needs no help where a vector is 64 bytes wide (4-bit weights: 29 alone, 26 with 3072 + 768)
// or weights have 8 bits (30 against 21); at 32 bytes the loop is long, and it gives 32 instead of 25 (6-bit: 30 instead of 19).
// Zen 3, one core, thread time: a reader of 64 bytes at a time gets 16 GB/s from one place and 20 from four; one token with 4 panels
// at once gets 16 instead of 14 (Q4_K), 18 instead of 15 (Q4_0, Q8_0).
// Zen 5, 64 bytes wide, one core and two: Q4_0 27 and 46 alone, 51 and 77 with 8192 into L1 (4096 + 1024: 33 and 62), Q6_K 25 and 44
// alone, 47 and 59; 8-bit ones 44 and 56 either way. Several panels at once help less there than that.
// ARM: not measured. Hardware prefetchers follow one stream of weights, and each request would be one more instruction.
Ahead Runtime::ahead([[maybe_unused]] int bits) const {
#if defined(__aarch64__)
  return {};
#endif
  if (amd_family() == 0) return {3072, 768, false};
  bool narrow = std::strcmp(kernels->name, "avx2") == 0;
  if (amd_family() >= 26 && !narrow) return {0, 8192, false};
  return {narrow && bits < 8 ? 7168 : 0, 0, narrow};
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

float* Runtime::shared(size_t floats) {
  if (shared_.size() < floats) shared_.resize(floats);
  return shared_.data();
}

void linear(const Linear& w, const Activation& x, Array& out, bool add, float scale, const LowRankTable* table,
            const AdapterRuns* runs) {
  require(x.cols == w.cols, "linear: input width differs from the weight's");
  require(x.n > 0 && x.n <= out.rows && w.rows <= out.cols, "linear: output is too small");
  Runtime& rt = Runtime::get();
  require(x.offers(w), "linear: the input was not kept in the form this weight needs");
  const Acts& a = x.acts;
  int items = 0;
  for (const auto& m : w.parts) items += m->w.num_panels();
  std::optional<Additions> more;
  if (table && runs && !runs->runs.empty()) more.emplace(w, x, out, *table, *runs, add ? scale : 1.0f);
  bool asks = more && x.n >= kRowsThatAsk && x.n < kRowsOfPrompt;
  auto job = [&](int begin, int end, int thread) {
    uint8_t* scratch = rt.scratch(thread, rt.kernels->scratch_bytes(w.cols, x.n));
    int first = 0, column = 0;
    for (const auto& m : w.parts) {
      int n = m->w.num_panels(), b = std::max(begin - first, 0), e = std::min(end - first, n);
      Out o{out.data + column, out.stride, add, scale};
      for (int step = asks ? kPanels : n; b < e; b += step) {
        int last = std::min(b + step, e);
        if (asks) more->ask(first + b, first + last, items);
        rt.kernels->linear(m->w, a, o, rt.ahead(m->w.format.bits()), b, last, scratch);
      }
      first += n, column += m->w.rows;
    }
    if (end > first) more->down(std::max(begin - first, 0), end - first, thread);
  };
  rt.pool->run(items + (more ? more->down_items() : 0), kPanels, job);
  if (!more) return;
  auto up = [&](int begin, int end, int thread) { more->up(begin, end, thread, out); };
  rt.pool->run(more->up_items(), more->up_is_short() ? more->up_items() : 1, up);
}

void rmsnorm(const Array& x, int n, const Array& weight, float eps, Activation& out) {
  require(x.cols == out.cols && weight.cols == x.cols && n <= x.rows, "rmsnorm: shapes differ");
  const Kernels& k = *Runtime::get().kernels;
  fill_rows(n, out, [&](int t, float* y) { k.rmsnorm(x.row(t), weight.data, x.cols, eps, y); });
}

void quantize(const Array& x, int n, Activation& out) {
  require(x.cols == out.cols && n <= x.rows, "quantize: shapes differ");
  fill_rows(n, out, [&](int t, float* y) { std::memcpy(y, x.row(t), size_t(x.cols) * sizeof(float)); });
}

void swiglu(const Array& gate_up, int n, Activation& out) {
  require(gate_up.cols == 2 * out.cols && n <= gate_up.rows, "swiglu: shapes differ");
  const Kernels& k = *Runtime::get().kernels;
  fill_rows(n, out, [&](int t, float* y) { k.swiglu(gate_up.row(t), gate_up.row(t) + out.cols, out.cols, y); });
}

std::vector<std::tuple<float, int64_t>> exp_totals(const Array& x, int n, const double* coarse, const double* fine) {
  require(n >= 0 && n <= x.rows, "exp_totals: more rows than there are");
  const Kernels& k = *Runtime::get().kernels;
  std::vector<std::tuple<float, int64_t>> out(static_cast<size_t>(n));
  auto job = [&](int begin, int end, int) {
    for (int t = begin; t < end; ++t) {
      const float* row = x.row(t);
      float peak = -std::numeric_limits<float>::infinity();
      bool numbers = true;
      for (int i = 0; i < x.cols; ++i) peak = row[i] > peak ? row[i] : peak, numbers &= row[i] == row[i];
      if (!numbers || !std::isfinite(peak)) {
        out[size_t(t)] = {std::numeric_limits<float>::quiet_NaN(), 0};
      } else {
        out[size_t(t)] = {peak, k.exp_total(row, x.cols, peak, coarse, fine)};
      }
    }
  };
  Runtime::get().pool->run(n, 1, job);
  return out;
}

void rope_append(Array& qkv, const Rows& rows, const AttentionSpec& spec, const Array& cos, const Array& sin, Cache& cache,
                 int layer) {
  const AttentionShape& s = spec.shape;
  int n = rows.size();
  require(qkv.cols >= (s.num_heads + 2 * s.num_kv_heads) * s.head_dim && n <= qkv.rows, "rope_append: qkv has another shape");
  require(cos.rows >= n && sin.rows >= n && 2 * cos.cols >= s.rope_dim && 2 * sin.cols >= s.rope_dim, "rope_append: angles");
  require(layer >= 0 && layer < cache.layers, "rope_append: outside the cache");
  require(cache.kv_heads == s.num_kv_heads && cache.head_dim == s.head_dim, "rope_append: cache of another shape");
  const Kernels& k = *Runtime::get().kernels;
  std::vector<Place> places = rows.places(cache.num_pages);
  std::vector<HeadPages> heads;
  for (int h = 0; h < s.num_kv_heads; ++h) heads.push_back(cache.head(layer, h));
  each_token(n, [&](int t) { k.rope_append(qkv.row(t), s, cos.row(t), sin.row(t), places[size_t(t)], heads.data()); });
}

static const SourceType* source_of(const std::string& type, int rows, int cols) {
  const SourceType* source = find_source(type);
  if (!source) throw std::invalid_argument("weights of type " + type + " cannot be packed");
  require(rows > 0 && cols > 0 && cols % source->block == 0, "pack: columns are not whole blocks");
  return source;
}

size_t packed_bytes(const std::string& type, int rows, int cols) {
  return panel_bytes(*source_of(type, rows, cols), cols) * ((size_t(rows) + kPanelRows - 1) / kPanelRows);
}

std::shared_ptr<Matrix> pack(const uint8_t* raw, size_t raw_bytes, const std::string& type, int rows, int cols,
                             const int32_t* order, Arena& arena, bool planes) {
  const SourceType* source = source_of(type, rows, cols);
  require(raw_bytes == size_t(rows) * (size_t(cols) / source->block) * source->bytes, "pack: wrong number of bytes");
  if (order)
    for (int i = 0; i < rows; ++i) require(order[i] >= 0 && order[i] < rows, "pack: row order out of range");
  auto m = std::make_shared<Matrix>();
  m->w.format = source->format;
  m->w.float_type = source->float_type;
  m->w.rows = rows, m->w.cols = cols;
  planes = planes && may_split(source->format.values);
  if (planes) m->w.format.values = split_of(source->format.values);
  m->w.panel_stride = planes ? panel_bytes(m->w.format, cols / kBlock) : panel_bytes(*source, cols);
  m->w.rest_stride = size_t(cols / kBlock) * size_t(rest_bytes(m->w.format.values));
  size_t panels = size_t(m->w.num_panels()), first = m->w.panel_stride * panels;  // a multiple of 64
  m->nbytes = first + m->w.rest_stride * panels;
  Arena::Piece piece = arena.take(m->nbytes);
  m->pages = piece.pages;
  m->w.data = piece.data;
  uint8_t* rest = planes ? piece.data + first : nullptr;
  m->w.rest = rest;
  if (arena.filled()) return m;  // packed before, from these rows
  auto job = [&](int begin, int end, int) { pack_panels(*source, raw, order, m->w, piece.data, rest, begin, end); };
  Runtime::get().pool->run(m->w.num_panels(), 4, job);
  return m;
}

void dequantize(const uint8_t* raw, size_t raw_bytes, const std::string& type, int rows, int cols, const int32_t* order,
                size_t count, int begin, int end, float* out, bool parallel) {
  int source = source_index(type);
  if (source < 0) throw std::invalid_argument("weights of type " + type + " cannot be dequantized");
  const SourceType& t = *find_source(type);
  require(rows > 0 && cols > 0 && cols % t.block == 0, "dequantize: columns are not whole blocks");
  size_t row_bytes = size_t(cols) / t.block * t.bytes;
  require(raw_bytes == size_t(rows) * row_bytes, "dequantize: wrong number of bytes");
  require(begin >= 0 && begin <= end && size_t(end) <= count, "dequantize: there are no such rows");
  for (int i = begin; order && i < end; ++i) require(order[i] >= 0 && order[i] < rows, "dequantize: row order out of range");
  const Kernels& k = *Runtime::get().kernels;
  auto job = [&](int b, int e, int) {
    for (int i = b; i < e; ++i)
      k.dequantize(source, raw + size_t(order ? order[begin + i] : begin + i) * row_bytes, cols, out + size_t(i) * cols);
  };
  constexpr int kChunk = 8;  // rows that one thread takes at least
  if (!parallel || !Runtime::get().pool->try_run(end - begin, kChunk, job)) job(0, end - begin, 0);
}

// Reads a piece of memory from several places in turn, a line of each: the hardware reads ahead in each of them.
template <int PLACES>
static uint64_t read_piece(const uint64_t* p, size_t words) {
  uint64_t s[8] = {};
  size_t run = words / PLACES;
  for (size_t i = 0; i < run; i += 8)
    for (int place = 0; place < PLACES; ++place)
      for (int j = 0; j < 8; ++j) s[j] ^= p[size_t(place) * run + i + j];
  return s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

double read_bandwidth(double seconds) {
  constexpr size_t kBytes = size_t(512) << 20, kPiece = size_t(256) << 10;
  Pages memory(kBytes, true);
  std::memset(memory.data(), 1, kBytes);
  std::atomic<uint64_t> sink{0};
  // Which of these is the fastest is the processor's affair.
  uint64_t (*const readers[])(const uint64_t*, size_t) = {read_piece<1>, read_piece<2>, read_piece<4>, read_piece<8>};
  double best = 0, spent = 0;
  for (int round = 0; round < 3 || spent < seconds; ++round)
    for (auto* read : readers) {
      auto job = [&](int begin, int end, int) {
        for (int i = begin; i < end; ++i)
          sink ^= read(reinterpret_cast<const uint64_t*>(memory.data() + size_t(i) * kPiece), kPiece / 8);
      };
      auto from = std::chrono::steady_clock::now();
      Runtime::get().pool->run(int(kBytes / kPiece), 16, job);
      double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
      spent += t;
      best = std::max(best, kBytes / t);
    }
  return best / 1e9;
}

}  // namespace gangpao
