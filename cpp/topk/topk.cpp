// Lists scalar by scalar: weighed, merged, by index; and the table of all kernels of one instruction set.
#include "rows/parallel.hpp"
#include "topk/lists.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t PART = 1 << 12;  // scalars that a thread takes at a time

// Runs f(begin, end) over parts of 0 … n and joins the flags that it gives.
template <class F> int in_parts(int64_t n, int64_t elements, int threads, F f) {
    return share((n + PART - 1) / PART, elements, threads, [&](int64_t begin, int64_t end) {
        Summary s = nothing_seen();
        s.flags = begin < end ? f(begin * PART, std::min(n, end * PART)) : 0;
        return s;
    }).flags;
}

template <class T> int weigh_part(const Lists<T> &g, const T *w, T *out, int64_t n, int64_t begin, int64_t end) {
    Vec<T> high{};
    Int<T> lost{}, nan{};
    for (int64_t i = begin; i < end; i += LANES<T>) {
        const int64_t count = std::min<int64_t>(LANES<T>, end - i);
        const Vec<T> edge = magnitude<T>(load(w + i, count));
        nan |= edge != edge;
        high = highest_of(edge, high);
        for (int s = 0; s < g.entries; s++) {
            const Vec<T> from = load(g.plane[s] + i, count), x = edge * from;
            store(out + s * n + i, x, count);
            high = highest_of(x, high);
            lost |= (x < TINY<T>)&(edge > 0) & (from > 0);
        }
    }
    return (any(nan) ? NAN_SEEN : 0) | (highest<T>(high) > LARGEST<T> ? TOO_LARGE : 0) | (any(lost) ? LOST : 0);
}

template <class T> int weigh(const Lists<T> &g, const T *w, int64_t n, T *out, int threads) {
    return in_parts(n, n * g.entries, threads, [&](int64_t begin, int64_t end) { return weigh_part(g, w, out, n, begin, end); });
}

template <class T> void merge(const Lists<T> &a, const Lists<T> &b, int64_t n, int keep, T *const *out, int threads) {
    using V = Vec<T>;
    in_parts(n, n * keep, threads, [&](int64_t begin, int64_t end) {
        std::vector<T> list(keep * LANES<T>);
        const T *last = list.data() + (keep - 1) * LANES<T>;
        for (int64_t i = begin; i < end; i += LANES<T>) {
            const int64_t count = std::min<int64_t>(LANES<T>, end - i);
            V x = load(b.plane[0] + i, count);
            const bool none = !any_greater(x, V{});
            if (none && out[0] == a.plane[0] && keep == a.entries) continue;
            for (int s = 0; s < keep; s++) store(list.data() + s * LANES<T>, s < a.entries ? load(a.plane[s] + i, count) : V{});
            for (int s = 0; s < b.entries && !none; s++) {
                x = load(b.plane[s] + i, count);
                if (!any_greater(x, load(last))) break;
                let_in(list.data(), LANES<T>, keep, x, s);
            }
            for (int s = 0; s < keep; s++) store(out[s] + i, load(list.data() + s * LANES<T>), count);
        }
        return 0;
    });
}

// Rows that lie next to each other, side by side.
template <class T> void reduce_columns(const Lists<T> &g, int64_t rows, int64_t n, int keep, T *out, int threads) {
    using V = Vec<T>;
    const int64_t blocks = (rows + LANES<T> - 1) / LANES<T>;
    share(blocks, rows * n * g.entries, threads, [&](int64_t begin, int64_t end) {
        std::vector<T> list(keep * LANES<T>);
        const T *last = list.data() + (keep - 1) * LANES<T>;
        for (int64_t block = begin; block < end; block++) {
            const int64_t i = block * LANES<T>, count = std::min<int64_t>(LANES<T>, rows - i);
            std::fill(list.begin(), list.end(), T(0));
            for (int64_t k = 0; k < n; k++)
                for (int s = 0; s < g.entries; s++) {
                    const V x = load(g.plane[s] + k * g.stride + i, count);
                    if (!any_greater(x, load(last))) break;
                    let_in(list.data(), LANES<T>, keep, x);
                }
            for (int s = 0; s < keep; s++) store(out + s * rows + i, load(list.data() + s * LANES<T>), count);
        }
        return nothing_seen();
    });
}

// Rows that go on along memory: of the largest heads alone can anything be among the largest of all.
template <class T> void reduce_rows(const Lists<T> &g, int64_t rows, int64_t n, int keep, T *out, int threads) {
    share(rows, rows * n, threads, [&](int64_t begin, int64_t end) {
        std::vector<T> heads(keep), list(keep);
        std::vector<int64_t> of(keep);
        for (int64_t row = begin; row < end; row++) {
            std::fill(heads.begin(), heads.end(), T(0)), std::fill(list.begin(), list.end(), T(0));
            for (int64_t i = 0; i < n; i += LANES<T>) {
                const Vec<T> x = load(g.plane[0] + row * g.row_stride + i, n - i);
                for (uint64_t more = greater_lanes(x, all(heads[keep - 1])); more; more &= more - 1) {
                    const int lane = __builtin_ctzll(more), at = let_in(heads.data(), 1, keep, x[lane]);
                    if (at == keep) continue;
                    std::copy_backward(of.begin() + at, of.end() - 1, of.end());
                    of[at] = i + lane;
                }
            }
            for (int c = 0; c < keep && heads[c] > 0; c++)
                for (int s = 0; s < g.entries; s++)
                    if (let_in(list.data(), 1, keep, g.plane[s][row * g.row_stride + of[c]]) == keep) break;
            for (int s = 0; s < keep; s++) out[s * rows + row] = list[s];
        }
        return nothing_seen();
    });
}

template <class T> void reduce(const Lists<T> &g, int64_t rows, int64_t n, int keep, T *out, int threads) {
    return g.stride == 1 ? reduce_rows(g, rows, n, keep, out, threads) : reduce_columns(g, rows, n, keep, out, threads);
}

template <class T>
int segment(const Lists<T> &g, int64_t rows, int64_t n, const int64_t *index, int64_t index_row_stride, int64_t size, int keep,
            T *out) {
    int deepest = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i++) {
            T *list = out + row * size + index[row * index_row_stride + i];
            for (int s = 0; s < g.entries; s++) {
                const T x = g.plane[s][row * g.row_stride + i * g.stride];
                if (!(x > 0) || let_in(list, rows * size, keep, x) == keep) break;
                while (deepest < keep && list[deepest * rows * size] > 0) deepest++;
            }
        }
    return deepest;
}

template <class T> int depth(const Spread<T> &g, int64_t batch, int64_t rows, int64_t n, int keep) {
    int deepest = 0;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t row = 0; row < rows; row++) {
            int here = 0;
            for (int64_t i = 0; i < n && here < keep; i++)
                for (int s = 0; s < g.entries && g.plane[s][b * g.batch_stride + g.row_at[row] + g.at[i]] > 0; s++) here++;
            deepest = std::max(deepest, std::min(here, keep));
            if (deepest == keep) return keep;
        }
    return deepest;
}

template <class T>
constexpr TopKernels<T> kernels = {&top_product<T>, &top_low_rank<T>, &weigh<T>, &merge<T>, &reduce<T>, &segment<T>, &depth<T>};

}  // namespace

extern const TopTable top_table = {kernels<float>, kernels<double>};

}  // namespace gradtrace::GRADTRACE_ISA
