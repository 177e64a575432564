// GGUF rows to panels (panel.h). Lossless: every stored integer and scale survives.
#pragma once
#include <string>
#include <vector>

#include "panel.h"

namespace gangpao {

struct SourceType {
  const char* name;
  int block, bytes;  // weights and bytes of one GGUF block
  Format format;
  FloatType float_type;
};

// Null for a type that we do not pack.
const SourceType* find_source(const std::string& name);

// Its number, the same in every copy of the table of readers (blocks.h); -1 for a type that we do not pack.
int source_index(const std::string& name);

// All types that we pack.
std::vector<SourceType> all_sources();

// Bytes of a panel of `cols` columns, which are whole blocks.
size_t panel_bytes(const SourceType& type, int cols);

// Writes panels [begin, end) of `w` to `to`, and with `rest` the lower bits there. `raw` holds the GGUF rows; row i of the result is row
// order[i] of the source (order null: i itself).
void pack_panels(const SourceType& type, const uint8_t* raw, const int32_t* order, const Packed& w, uint8_t* to, uint8_t* rest,
                 int begin, int end);

}  // namespace gangpao
