// Numbers that are none: refused before anything is made of them.
#pragma once

#include "format/expert_packer.h"

namespace lsg {

// Throw CheckpointError, naming what it is among, if a code or scale of these rows, or what belongs
// to the matrix as a whole (bias, global scale), is a NaN or infinite.
void RequireFiniteRows(const MatrixView& matrix, const PanelFormat& format, int first, int count);
void RequireFiniteWhole(const MatrixView& matrix, const PanelFormat& format);

}  // namespace lsg
