#include "quantize_rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "runtime.h"

namespace gangpao {
namespace {

constexpr float kF16 = 65504.0f, kMostBf16 = 0x1.fefffep+127f, kMost = 0x1.fffffep+127f;
constexpr float kLeastWeight = 0x1p-12f;

constexpr WrittenType kWritten[] = {
    {Written::F32, "F32", 1, 4, kMost},
    {Written::F16, "F16", 1, 2, kF16},
    {Written::BF16, "BF16", 1, 2, kMostBf16},
    {Written::Q4_0, "Q4_0", 32, 18, 8 * kF16},
    {Written::Q4_1, "Q4_1", 32, 20, kF16},
    {Written::Q5_0, "Q5_0", 32, 22, 16 * kF16},
    {Written::Q5_1, "Q5_1", 32, 24, kF16},
    {Written::Q8_0, "Q8_0", 32, 34, 127 * kF16},
    {Written::IQ4_NL, "IQ4_NL", 32, 18, 127 * kF16},
    {Written::Q2_K, "Q2_K", 256, 84, 15 * kF16},
    {Written::Q3_K, "Q3_K", 256, 110, 4 * 32 * kF16},
    {Written::Q4_K, "Q4_K", 256, 144, 63 * kF16},
    {Written::Q5_K, "Q5_K", 256, 176, 63 * kF16},
    {Written::Q6_K, "Q6_K", 256, 210, 32 * 128 * kF16},
    {Written::IQ4_XS, "IQ4_XS", 256, 136, 127 * 32 * kF16},
    {Written::TQ1_0, "TQ1_0", 256, 54, kF16},
    {Written::TQ2_0, "TQ2_0", 256, 66, kF16},
};

// What the columns weigh, with a mean of about 1; empty where all weigh the same.
std::vector<float> column_weights(const float* importance, size_t cols) {
  double sum = 0;
  for (size_t i = 0; i < cols; ++i) {
    if (!(importance[i] >= 0.0f && importance[i] <= kMost))
      throw std::invalid_argument("importance of column " + std::to_string(i) + " is " + std::to_string(importance[i]) +
                                  "; it must be finite and at least 0");
    sum += double(importance[i]);
  }
  double mean = sum / double(cols);
  std::vector<float> out(cols, 1.0f);
  if (mean > 0)
    for (size_t i = 0; i < cols; ++i) out[i] = std::max(float(double(importance[i]) / mean), kLeastWeight);
  return out;
}

// Q4_1 without importance takes its offset and range as they are.
bool plain_q4_1_reaches(const float* x, size_t cols) {
  for (size_t b = 0; b < cols; b += 32) {
    float low = x[b], high = x[b];
    for (size_t i = b; i < b + 32; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]);
    if (!(std::fabs(low) <= kF16 && (high - low) / 15.0f <= kF16)) return false;
  }
  return true;
}

bool all_within(const float* x, size_t cols, float reach) {
  int far = 0;
  for (size_t i = 0; i < cols; ++i) far |= !(std::fabs(x[i]) <= reach);  // also what is no number
  return !far;
}

[[noreturn]] void refuse(const float* x, size_t row, size_t cols, const WrittenType& type) {
  std::string at = "row " + std::to_string(row) + ": ";
  for (size_t i = 0; i < cols; ++i)
    if (!std::isfinite(x[i]))
      throw std::invalid_argument(at + std::to_string(x[i]) +
                                  " is no number to compute with: the checkpoint is damaged or its training diverged");
  float largest = 0;
  for (size_t i = 0; i < cols; ++i)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  throw std::invalid_argument(at + "a value of " + std::to_string(largest) + ", and " + type.name + " ends at about " +
                              std::to_string(type.reach) + "; take BF16 or F32");
}

template <class Job>
void spread(bool parallel, int items, int chunk, Job& job) {
  if (!parallel || !Runtime::get().pool->try_run(items, chunk, job)) job(0, items, 0);
}

}  // namespace

const WrittenType* find_written(const std::string& name) {
  for (const WrittenType& type : kWritten)
    if (name == type.name) return &type;
  return nullptr;
}

void quantize_rows(const float* values, size_t rows, size_t cols, const WrittenType& type, const float* importance, bool parallel,
                   uint8_t* out) {
  if (!rows || !cols) return;
  std::vector<float> columns;
  if (importance && type.block > 1) columns = column_weights(importance, cols);
  std::atomic<size_t> wrong{rows};
  auto check = [&](int begin, int end, int) {
    for (size_t r = size_t(begin); r < size_t(end); ++r) {
      const float* x = values + r * cols;
      if (all_within(x, cols, type.reach)) continue;
      if (type.id == Written::Q4_1 && columns.empty() && all_within(x, cols, kMost) && plain_q4_1_reaches(x, cols)) continue;
      size_t first = wrong;
      while (r < first && !wrong.compare_exchange_weak(first, r)) {
      }
      return;
    }
  };
  spread(parallel, int(rows), 8, check);
  if (wrong < rows) refuse(values + wrong * cols, wrong, cols, type);
  const Kernels& k = *Runtime::get().kernels;
  size_t blocks = rows * (cols / size_t(type.block));
  constexpr size_t kTogether = 64;  // blocks that one call is given: a whole number of vectors
  size_t together = type.block == 1 ? cols : type.block == 32 ? 8 * kTogether : kTogether;
  auto job = [&](int begin, int end, int) {
    size_t first = size_t(begin) * together, last = std::min(blocks, size_t(end) * together);
    k.write_blocks(int(type.id), values, columns.empty() ? nullptr : columns.data(), cols, first, last, out);
  };
  spread(parallel, int((blocks + together - 1) / together), 1, job);
}

}  // namespace gangpao
