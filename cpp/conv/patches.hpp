// When a convolution is seen as patches and given to the pruned (max, ×) product.
//
// Patches (towards the input) cost a copy per step, planes (towards the kernel) one per position, which the product's pruning
// earns back where enough results share a row's survivors (a block of columns is full) and the reduced axis is long. Elsewhere
// the direct kernel stays: it has nothing to set up.
#pragma once

#include "conv/conv.hpp"
#include "conv/tile.hpp"

namespace gradtrace::GRADTRACE_ISA {

// `columns` share what a row prunes, from `enough` on; `rows` share the packed columns, `steps` are reduced.
inline bool worth_patches(int64_t rows, int64_t columns, int64_t steps, int64_t enough) { return rows >= 16 && columns >= enough && steps >= 128; }
constexpr int64_t ENOUGH_TO_COPY = 32, ENOUGH_IN_PLACE = 16;  // columns, where patches are written out, and where not

// The same as conv_weight's direct way, but for results that are denormal or zero: LOST means to ask that one.
template <class T> bool weight_suits_patches(const ConvWeight<T> &job);
template <class T> Summary weight_by_patches(const ConvWeight<T> &job, int threads);

}  // namespace gradtrace::GRADTRACE_ISA
