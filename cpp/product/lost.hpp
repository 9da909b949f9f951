// Whether a zero among the outputs is one only because a product of two non-zero numbers became zero.
#pragma once

#include "product/pack.hpp"

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

// The smallest |x| that is not zero; infinity if there is none.
template <class T> T smallest(const Side<T> &side, int64_t k) {
    using S = Simd<T>;
    const bool along = side.row_stride == 1;  // memory is read in its own order
    const int64_t outers = along ? k : side.rows, outer = along ? side.k_stride : side.row_stride;
    const int64_t inners = along ? side.rows : k, inner = along ? 1 : side.k_stride;
    const auto zero = S::zero(), nothing = S::set(std::numeric_limits<T>::infinity());
    auto low = nothing;
    const auto take = [&](auto x) { low = S::smaller(S::blend(S::equal(x, zero), nothing, S::abs(x)), low); };
    for (int64_t o = 0; o < outers; o++) {
        const T *line = side.data + o * outer;
        int64_t i = 0;
        for (; inner == 1 && i + S::lanes <= inners; i += S::lanes) take(S::load(line + i));
        for (; i < inners; i++) take(S::set(line[i * inner]));
    }
    return S::min_of(low);
}

// Looks through the zeros of one product of the batch.
template <class T> bool zero_was_lost(const Product<T> &p, int64_t b) {
    const Side<T> a = side_a(p, b), w = side_w(p, b);
    // rounding keeps order: if this is not zero, no product of numbers that are not is
    if (smallest(a, p.k) * smallest(w, p.k) != 0) return false;
    const int64_t words = cut(p.k, 64);
    Scratch memory;
    uint64_t *columns = memory.get<uint64_t>((p.n + 1) * words), *row = columns + p.n * words;
    for (int64_t j = 0; j < p.n; j++)
        nonzero_bits(w.data + j * w.row_stride, w.k_stride, p.k, columns + j * words);
    for (int64_t i = 0; i < p.m; i++) {
        const T *out = p.out + (b * p.m + i) * p.n;
        bool known = false;
        for (int64_t j = 0; j < p.n; j++) {
            if (out[j] != 0) continue;
            if (!known) nonzero_bits(a.data + i * a.row_stride, a.k_stride, p.k, row);
            known = true;
            if (meet(row, columns + j * words, words)) return true;
        }
    }
    return false;
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
