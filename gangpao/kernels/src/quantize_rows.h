// Weights as GGUF rows, the compiled form of gangpao/formats/quants/: the same float steps, so the same bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace gangpao {

enum class Written : int { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, TQ1_0, TQ2_0 };

// A type that is written: weights and bytes of a block, and the largest value that its scales reach.
struct WrittenType {
  Written id;
  const char* name;
  int block, bytes;
  float reach;
};

// The type of this name, or null.
const WrittenType* find_written(const std::string& name);

// Rows [rows, cols] to out [rows, row bytes]. importance: of each column, or null. Throws for values or an importance that cannot be
// written, naming the row.
void quantize_rows(const float* values, size_t rows, size_t cols, const WrittenType& type, const float* importance, bool parallel,
                   uint8_t* out);

}  // namespace gangpao
