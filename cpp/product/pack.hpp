// Packing operands of the (max, ×) product: absolute values, zero padded, in the order in which the kernels read.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "product/product.hpp"
#include "shared/simd.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int VECTORS = 4;  // vectors side by side in a block of columns: enough chains to hide latencies
template <class T> constexpr int LANES = VECTORS *Simd<T>::lanes;  // columns of a block
constexpr int ROWS = 16;                                           // rows of a tile: a cache line of floats

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t cut(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Memory that grows and is not initialised. Written here, not std::vector, because an inline function of the
// standard library compiled for this instruction set must not be the one that the linker keeps for all.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    ~Scratch() { drop(); }

    template <class T> T *get(int64_t count) {
        const size_t bytes = static_cast<size_t>(most(count, 1)) * sizeof(T);
        if (bytes > size_) grow(bytes);
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(memory_, size_);
#endif
        return static_cast<T *>(memory_);
    }
    // Keeps at most this much for the next call.
    void trim(size_t limit) {
        if (size_ > limit) drop();
    }

  private:
    static constexpr size_t HUGE = size_t(1) << 21;

    void drop() {
        std::free(memory_);
        memory_ = nullptr, size_ = 0;
    }
    void grow(size_t bytes) {
        drop();
        const size_t unit = bytes >= HUGE ? HUGE : 4096;
        const size_t rounded = (bytes + unit - 1) / unit * unit;
        memory_ = std::aligned_alloc(unit, rounded);
        if (!memory_) throw std::bad_alloc();
        size_ = rounded;
#if defined(__linux__)
        if (unit == HUGE) madvise(memory_, rounded, MADV_HUGEPAGE);  // random rows of a block: fewer TLB misses
#endif
    }
    void *memory_ = nullptr;
    size_t size_ = 0;
};

inline float absolute(float x) { return __builtin_fabsf(x); }
inline double absolute(double x) { return __builtin_fabs(x); }

// Cuts one piece of memory into arrays on cache lines; with no memory it only counts. Under a sanitizer nobody may
// touch what lies between them.
class Carver {
  public:
    explicit Carver(char *memory) : memory_(memory) {}
    template <class U> U *take(int64_t count) {
        U *out = memory_ ? reinterpret_cast<U *>(memory_ + used_) : nullptr;
        used_ += (static_cast<size_t>(count) * sizeof(U) + 63) / 64 * 64;
#if defined(__SANITIZE_ADDRESS__)
        if (memory_) __asan_poison_memory_region(memory_ + used_, 64);
        used_ += 64;
#endif
        return out;
    }
    size_t used() const { return used_; }

  private:
    char *memory_;
    size_t used_ = 0;
};

// Square blocks of 16-byte vectors, to turn rows into columns.
template <class T, int size = 16 / sizeof(T)> struct Square;
template <class T> struct Square<T, 4> {
    static constexpr int size = 4;
    typedef T quad __attribute__((vector_size(16)));
    static void transpose(quad x[4]) {
        const quad a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5), b = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
        const quad c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5), d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
        x[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), x[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
        x[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5), x[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
    }
};
template <class T> struct Square<T, 2> {
    static constexpr int size = 2;
    typedef T quad __attribute__((vector_size(16)));
    static void transpose(quad x[2]) {
        const quad a = __builtin_shufflevector(x[0], x[1], 0, 2), b = __builtin_shufflevector(x[0], x[1], 1, 3);
        x[0] = a, x[1] = b;
    }
};

// dst[o·dst_stride + i] = src[o + i·inner], square by square.
template <class T>
void copy_transposed(const T *src, int64_t inner, int64_t outers, int64_t inners, T *dst, int64_t dst_stride) {
    constexpr int S = Square<T>::size;
    using Quad = typename Square<T>::quad;
    const int64_t whole_o = outers / S * S, whole_i = inners / S * S;
    for (int64_t o = 0; o < whole_o; o += S)
        for (int64_t i = 0; i < whole_i; i += S) {
            Quad x[S];
            for (int s = 0; s < S; s++) std::memcpy(&x[s], src + o + (i + s) * inner, sizeof(Quad));
            Square<T>::transpose(x);
            for (int s = 0; s < S; s++) std::memcpy(dst + (o + s) * dst_stride + i, &x[s], sizeof(Quad));
        }
    for (int64_t o = 0; o < outers; o++)
        for (int64_t i = o < whole_o ? whole_i : 0; i < inners; i++) dst[o * dst_stride + i] = src[o + i * inner];
}

// dst[o·dst_stride + i] = |src[o·outer + i·inner]| for o < outers, i < inners.
template <class T>
void copy_absolute(const T *src, int64_t outer, int64_t inner, int64_t outers, int64_t inners, T *dst,
                   int64_t dst_stride) {
    if (inner == 1) {
        for (int64_t o = 0; o < outers; o++)
            for (int64_t i = 0; i < inners; i++) dst[o * dst_stride + i] = absolute(src[o * outer + i]);
    } else if (outer == 1) {
        copy_transposed(src, inner, outers, inners, dst, dst_stride);
        for (int64_t o = 0; o < outers; o++)
            for (int64_t i = 0; i < inners; i++) dst[o * dst_stride + i] = absolute(dst[o * dst_stride + i]);
    } else {
        for (int64_t o = 0; o < outers; o++)
            for (int64_t i = 0; i < inners; i++) dst[o * dst_stride + i] = absolute(src[o * outer + i * inner]);
    }
}

// What a column's numbers are measured in. One number that stands out, as the target word's among the derivatives of
// a softmax, lifts the mean above all others; a typical number is then what products with other k's compare with.
enum class Unit {
    mean,
    typical,  // about the geometric mean of the numbers that are not zero
};

// What the pruned kernel wants to know of one block of columns. Bounds are in each column's own unit,
// so that one small column doesn't hold back the others; `scale` is one over that unit.
template <class T> struct Bounds {
    T *bound;  // depth, padded: the largest scaled |w| of the block, a little rounded up
    T *scale;  // LANES
    T *dead;   // LANES: infinity where the column is zero throughout, else 0
};

// Scaled numbers below this are not trusted to be in order; scales stay within 2^±60.
template <class T> constexpr T TRUSTED = T(8.673617379884035e-19);   // 2^-60
template <class T> constexpr T SMALLEST_BOUND = T(7.52316384526264e-37);  // 2^-120: never zero beside a weight
template <class T> constexpr T ROUNDED_UP = T(1) + T(9.5367431640625e-07);  // 1 + 2^-20

template <class T> T column_scale(T unit) {
    const T limit = T(1) / TRUSTED<T>;
    const T scale = T(1) / unit;
    return scale < limit ? (scale > TRUSTED<T> ? scale : TRUSTED<T>) : limit;
}

// Sums the columns of a packed block: 0 is a column of zeros, NaN one with a NaN in it.
template <class T> void column_sums(const T *w, int64_t depth, T *sums) {
    using S = Simd<T>;
    typename S::reg sum[VECTORS];
    for (int v = 0; v < VECTORS; v++) sum[v] = S::zero();
    for (int64_t k = 0; k < depth; k++)
        for (int v = 0; v < VECTORS; v++) sum[v] = S::add(sum[v], S::load(w + k * LANES<T> + v * S::lanes));
    for (int v = 0; v < VECTORS; v++) S::store(sums + v * S::lanes, sum[v]);
}

// A typical number of each column of a packed block; 0 where there is none. The first 16 bits of a number, its exponent
// in front, grow about as its logarithm does.
template <class T> void typical(const T *w, int64_t depth, T *out) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    constexpr int SHIFT = 8 * sizeof(T) - 16;
    Bits sum[LANES<T>] = {}, count[LANES<T>] = {};
    for (int64_t k = 0; k < depth; k++)
        for (int lane = 0; lane < LANES<T>; lane++) {
            Bits bits;
            std::memcpy(&bits, w + k * LANES<T> + lane, sizeof bits);
            sum[lane] += bits >> SHIFT;
            count[lane] += bits != 0;
        }
    for (int lane = 0; lane < LANES<T>; lane++) {
        const Bits mean = count[lane] ? sum[lane] / count[lane] << SHIFT : 0;
        std::memcpy(out + lane, &mean, sizeof mean);
    }
}

template <class T> void find_bounds(const T *w, int64_t depth, int64_t padded, const T *sums, Unit unit, const Bounds<T> &out) {
    using S = Simd<T>;
    T units[LANES<T>];
    if (unit == Unit::typical) typical(w, depth, units);
    else
        for (int lane = 0; lane < LANES<T>; lane++) units[lane] = sums[lane] / static_cast<T>(depth);
    for (int lane = 0; lane < LANES<T>; lane++) {
        out.scale[lane] = sums[lane] > 0 ? column_scale(units[lane]) : T(1);
        out.dead[lane] = sums[lane] > 0 ? T(0) : std::numeric_limits<T>::infinity();
    }
    typename S::reg scale[VECTORS];
    for (int v = 0; v < VECTORS; v++) scale[v] = S::load(out.scale + v * S::lanes);
    for (int64_t k = 0; k < depth; k++) {
        auto top = S::zero(), raw = S::zero();
        for (int v = 0; v < VECTORS; v++) {
            const auto x = S::load(w + k * LANES<T> + v * S::lanes);
            top = S::larger(S::mul(x, scale[v]), top);
            raw = S::larger(x, raw);
        }
        T bound = S::max_of(top) * ROUNDED_UP<T>;
        if (!(bound > SMALLEST_BOUND<T>)) bound = S::max_of(raw) > 0 ? SMALLEST_BOUND<T> : T(0);
        out.bound[k] = bound;
    }
    for (int64_t k = depth; k < padded; k++) out.bound[k] = 0;
}

// One operand of one product: a's rows or w's.
template <class T> struct Side {
    const T *data;
    int64_t row_stride, k_stride, rows;
    bool positive;
    const int32_t *order = nullptr;  // in which its rows are taken; null: as they lie

    int64_t place(int64_t row) const { return order ? order[row] : row; }
};

// a's rows, or w's, of one product of a batch; a is positive.
template <class T> Side<T> side_a(const Product<T> &p, int64_t b) {
    return {p.a.data + b * p.a.batch_stride, p.a.row_stride, p.a.k_stride, p.m, true};
}
template <class T> Side<T> side_w(const Product<T> &p, int64_t b) {
    return {p.w.data + b * p.w.batch_stride, p.w.row_stride, p.w.k_stride, p.n, false};
}

// |w| of some columns and a chunk of k.
template <class T> struct Panel {
    int64_t depth, padded;
    T *w, *bound, *scale, *dead;  // from bound on: only if pruned
    T *score;                     // how strong each k looks
    Unit unit = Unit::mean;

    T *block(int64_t b) const { return w + b * depth * LANES<T>; }
    Bounds<T> bounds(int64_t b) const {
        return {bound + b * padded, scale + b * LANES<T>, dead + b * LANES<T>};
    }
};

constexpr int64_t CHUNK = 2048;  // k's at a time: a packed block of them fits the second-level cache, and 16-bit lists

inline int64_t padded_to(int64_t size, int64_t unit) { return cut(size, unit) * unit; }

inline int64_t chunk_depth(int64_t k) { return least(padded_to(cut(k, most(1, cut(k, CHUNK))), 16), k); }

// Packs a block, and notes which of its columns have anything in them. Gives whether there is a NaN.
template <class T>
bool pack_block(const Side<T> &side, int64_t block, int64_t slot, int64_t k, const Panel<T> &panel, bool bounds, T *column_limit) {
    const int64_t first = block * LANES<T>, count = least(LANES<T>, side.rows - first);
    T *w = panel.block(slot), sums[LANES<T>];
    if (count < LANES<T>) std::memset(static_cast<void *>(w), 0, static_cast<size_t>(panel.depth * LANES<T>) * sizeof(T));
    if (side.order)
        for (int64_t at = 0; at < panel.depth; at++)
            for (int64_t lane = 0; lane < count; lane++)
                w[at * LANES<T> + lane] = absolute(side.data[side.order[first + lane] * side.row_stride + (k + at) * side.k_stride]);
    else
        copy_absolute(side.data + first * side.row_stride + k * side.k_stride, side.k_stride, side.row_stride, panel.depth, count, w, LANES<T>);
    column_sums(w, panel.depth, sums);
    bool nan = false;
    for (int lane = 0; lane < LANES<T>; lane++) {
        if (sums[lane] != 0) column_limit[first + lane] = std::numeric_limits<T>::min();
        nan |= sums[lane] != sums[lane];
    }
    if (bounds) find_bounds(w, panel.depth, panel.padded, sums, panel.unit, panel.bounds(slot));
    return nan;
}

// A k looks strong where the bounds of some of the blocks are high.
template <class T> void find_score(const Panel<T> &panel, int64_t blocks) {
    std::memset(static_cast<void *>(panel.score), 0, static_cast<size_t>(panel.padded) * sizeof(T));
    for (int64_t b = 0; b < blocks; b += most(1, blocks / 8)) {
        const T *bound = panel.bounds(b).bound;
        for (int64_t k = 0; k < panel.depth; k++) panel.score[k] += bound[k];
    }
}

// Memory that this thread keeps from call to call.
inline Scratch &scratch() {
    static thread_local Scratch own;
    return own;
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
