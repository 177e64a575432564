// The objects that Python holds between kernel calls, and the one place where kernels meet threads.
#pragma once
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "adapters.h"
#include "isa.h"
#include "memory.h"
#include "pack.h"
#include "pool.h"

namespace gangpao {

constexpr int kTokenPad = 16;  // token buffers are padded to whole AMX tiles

// Float rows [rows, cols]; rows are 64-byte aligned.
class Array {
 public:
  Array(int rows, int cols);
  int rows, cols, stride;
  SharedPages pages;
  float* data;
  float* row(int i) const { return data + size_t(i) * stride; }
  Array part(int first_row, int n, int first_col, int width) const;  // the same memory
};

// One packed matrix; owns its share of an arena and its bias.
class Matrix {
 public:
  Packed w;
  SharedPages pages;
  std::vector<float> bias;
  size_t nbytes = 0;
};

// Several matrices over the same input, their rows one after the other in the output (q, k, v; gate, up).
class Linear {
 public:
  explicit Linear(std::vector<std::shared_ptr<Matrix>> parts);
  std::vector<std::shared_ptr<Matrix>> parts;
  int rows = 0, cols = 0;
  size_t nbytes = 0;
  bool needs_float = false, needs_blocks = false, needs_supers = false;
};

// The input of linear layers, in the forms that its readers need: int8 with a scale for 32 or for 256 columns, floats.
class Activation {
 public:
  Activation(int capacity, int cols, const std::vector<std::shared_ptr<Linear>>& readers, bool keep_float);
  int capacity, cols;
  bool blocks = false, supers = false, floats;
  int n = 0;
  SharedPages pages;
  Acts acts;
  void begin(int tokens);  // sets n and the token strides
  void fill(const float* x, int token) const;  // a row's quantized forms
  bool offers(const Linear& w) const;
};

// Keys and values in pages of 64 positions, each with all layers. Which page is whose is not its business.
class Cache {
 public:
  // key_bits, value_bits: 16 (f16), 8 or 4, of a number of a key and of a value.
  Cache(int layers, int kv_heads, int head_dim, int num_pages, int key_bits, int value_bits);
  int layers, kv_heads, head_dim, num_pages;
  Kept keys, values;
  SharedPages pages;
  HeadPages head(int layer, int h) const;
  void copy_page(int from, int to);
  uint8_t* page(int i) const;
  size_t bytes_of_page() const { return page_bytes_; }
  static size_t page_bytes(int layers, int kv_heads, int head_dim, int key_bits, int value_bits);

 private:
  size_t page_bytes_, head_bytes_, key_bytes_, value_bytes_, key_scales_;
};

// The tokens of one step: for each its position and the pages of its sequence.
class Rows {
 public:
  void clear();
  void add(const std::vector<int32_t>& pages, int start, int n);
  int size() const { return int(owner_.size()); }
  std::vector<Place> places(int num_pages) const;  // checked against a cache of that many pages

 private:
  std::vector<int32_t> pages_;
  std::vector<std::pair<size_t, size_t>> tables_;  // where in pages_ a sequence's begin, and how many it has
  std::vector<int> owner_, position_;
};

// RoPE and attention of one layer.
class AttentionSpec {
 public:
  AttentionShape shape{};
  std::vector<float> q_norm, k_norm;
};

// Threads and instruction set; one per process.
class Runtime {
 public:
  static Runtime& get();
  const Kernels* kernels;
  Ahead ahead(int bits) const;  // for weights of this many bits
  std::unique_ptr<Pool> pool;
  void set_threads(int n);
  void set_isa(const std::string& name);
  static std::vector<std::string> available();
  uint8_t* scratch(int thread, size_t bytes);
  float* shared(size_t floats);  // for all threads of one kernel call

 private:
  Runtime();
  std::vector<std::vector<uint8_t>> scratch_;
  std::vector<float> shared_;
};

// out = W x, or out += scale * W x; with a table, plus (scale *) what the adapters of the runs' rows add.
void linear(const Linear& w, const Activation& x, Array& out, bool add, float scale, const LowRankTable* table = nullptr,
            const AdapterRuns* runs = nullptr);
void rmsnorm(const Array& x, int n, const Array& weight, float eps, Activation& out);
void quantize(const Array& x, int n, Activation& out);
void swiglu(const Array& gate_up, int n, Activation& out);
void layernorm(const Array& x, int n, const Array& weight, const Array& bias, float eps, Activation& out);
void gelu(const Array& x, int n, Gelu kind, Activation& out);
// Every row of q over all rows of k and v, or in groups of `window` rows over those of the same group; heads side by side in columns.
void attend_all(const Array& q, const Array& k, const Array& v, int heads, float scale, int window, Array& out);
// Of each of the first n rows: its largest value, NaN if any is none, and the sum of e^(x - peak) in units of 2^-44.
std::vector<std::tuple<float, int64_t>> exp_totals(const Array& x, int n, const double* coarse, const double* fine);
void rope_append(Array& qkv, const Rows& rows, const AttentionSpec& spec, const Array& cos, const Array& sin, Cache& cache, int layer);
// planes: in two planes (panel.h), where the type has them.
std::shared_ptr<Matrix> pack(const uint8_t* raw, size_t raw_bytes, const std::string& type, int rows, int cols,
                             const int32_t* order, Arena& arena, bool planes = false);
// Bytes of a packed matrix. Throws for a type that cannot be packed, and for columns that are not whole blocks.
size_t packed_bytes(const std::string& type, int rows, int cols);
// Rows [begin, end) of `rows` GGUF rows of `cols` weights as floats [end - begin, cols]; with an order (of `count` rows) row i is row
// order[i] of the source. parallel: with the pool, where nobody else uses it at the moment.
void dequantize(const uint8_t* raw, size_t raw_bytes, const std::string& type, int rows, int cols, const int32_t* order,
                size_t count, int begin, int end, float* out, bool parallel);
double read_bandwidth(double seconds);

}  // namespace gangpao
