// Whether a zero among the outputs is one only because a product of two non-zero numbers became zero.
#pragma once

#include "product_pack.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// Which of the k's of one row are not zero, a bit each.
template <class T> void nonzero_bits(const T *row, int64_t k_stride, int64_t k, uint64_t *bits) {
    for (int64_t word = 0; word * 64 < k; word++) {
        uint64_t found = 0;
        const int64_t count = least(64, k - word * 64);
        for (int64_t bit = 0; bit < count; bit++)
            found |= static_cast<uint64_t>(row[(word * 64 + bit) * k_stride] != 0) << bit;
        bits[word] = found;
    }
}

inline bool meet(const uint64_t *x, const uint64_t *y, int64_t words) {
    uint64_t both = 0;
    for (int64_t word = 0; word < words; word++) both |= x[word] & y[word];
    return both != 0;
}

// Looks through the zeros of one product of the batch.
template <class T> bool zero_was_lost(const Product<T> &p, int64_t b) {
    const int64_t words = cut(p.k, 64);
    Scratch memory;
    uint64_t *columns = memory.get<uint64_t>((p.n + 1) * words), *row = columns + p.n * words;
    for (int64_t j = 0; j < p.n; j++)
        nonzero_bits(p.w.data + b * p.w.batch_stride + j * p.w.row_stride, p.w.k_stride, p.k, columns + j * words);
    for (int64_t i = 0; i < p.m; i++) {
        const T *out = p.out + (b * p.m + i) * p.n;
        bool known = false;
        for (int64_t j = 0; j < p.n; j++) {
            if (out[j] != 0) continue;
            if (!known) nonzero_bits(p.a.data + b * p.a.batch_stride + i * p.a.row_stride, p.a.k_stride, p.k, row);
            known = true;
            if (meet(row, columns + j * words, words)) return true;
        }
    }
    return false;
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
