// An expert from the formats of the checkpoint to the records of its layer file, in one pass.
//
// Rows go through in bands that stay in the second-level cache: read, converted, permuted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "convert/matrix_converter.h"
#include "format/expert_packer.h"

namespace lsg {

// The converters of an expert's projections; gate is null in layers without one.
struct ExpertConverters {
  MatrixConverter* gate;
  MatrixConverter* up;
  MatrixConverter* down;
};

// Writes every byte of the expert's records, which begin `stride` bytes after each other, and
// returns their checksum. Throws CheckpointError for numbers that cannot be stored.
uint32_t ConvertExpert(const LayerSpec& spec, const ExpertConverters& expert, std::byte* records,
                       ptrdiff_t stride);

}  // namespace lsg
