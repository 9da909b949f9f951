// Python's view of the kernels for several path weights a scalar. Lists come in as the addresses of their planes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <utility>
#include <vector>

#include "topk/topk.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

using Pointer = uintptr_t;
using Pointers = std::vector<uintptr_t>;
using Strides = std::array<int64_t, 3>;

template <class T> T *at(Pointer p) { return reinterpret_cast<T *>(p); }
template <class T> Lists<T> lists(const Pointers &planes, const Strides &s = {}) {
    return {reinterpret_cast<const T *const *>(planes.data()), int(planes.size()), s[0], s[1], s[2]};
}
template <class T> Edges<T> edges(Pointer data, const Strides &s) { return {at<const T>(data), s[0], s[1], s[2]}; }

// Calls f with the kernels for numbers of the type asked for, without the interpreter's lock.
template <class F> auto typed(bool is_double, F f) {
    nb::gil_scoped_release unlocked;
    const TopTable &table = GRADTRACE_PICK(top_table);
    return is_double ? f(double(), table.dual) : f(float(), table.single);
}

// Where the places of some axes lie (size and stride each), the last axis being the fastest.
using Axes = std::vector<std::pair<int64_t, int64_t>>;
std::vector<int64_t> places(const Axes &axes) {
    std::vector<int64_t> out{0};
    for (const auto &[size, stride] : axes) {
        std::vector<int64_t> more;
        more.reserve(out.size() * size);
        for (int64_t from : out)
            for (int64_t i = 0; i < size; i++) more.push_back(from + i * stride);
        out.swap(more);
    }
    return out;
}

// Rows and lists over axes of any size and stride, and where they lie.
struct Everywhere {
    const Pointers &planes;
    int64_t batch_stride;
    std::vector<int64_t> row_at, at;

    Everywhere(const Pointers &planes, int64_t batch_stride, const Axes &rows, const Axes &lists)
        : planes(planes), batch_stride(batch_stride), row_at(places(rows)), at(places(lists)) {}
    int64_t rows() const { return int64_t(row_at.size()); }
    int64_t lists() const { return int64_t(at.size()); }
    template <class T> Spread<T> spread() const {
        return {reinterpret_cast<const T *const *>(planes.data()), int(planes.size()), batch_stride, row_at.data(), at.data()};
    }
};

int product(bool is_double, int64_t batch, int64_t n, const Pointers &a, int64_t batch_stride, const Axes &row_axes,
            const Axes &list_axes, Pointer w, const Strides &w_strides, int keep, Pointer out, int threads) {
    const Everywhere from(a, batch_stride, row_axes, list_axes);
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        const TopProduct<T> p{batch, from.rows(), n, from.lists(), from.spread<T>(), edges<T>(w, w_strides), keep, at<T>(out)};
        return table.product(p, threads);
    });
}

int low_rank(bool is_double, int64_t batch, int64_t rows, int64_t n, const Pointers &g, const Strides &g_strides,
             const Pointers &factors, const std::vector<Strides> &strides, int keep, Pointer out, int threads) {
    if ((factors.size() != 3 && factors.size() != 5) || strides.size() != factors.size())
        throw nb::value_error("own, then left and right of rank one or two, and strides of each");
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        const int rank = int(factors.size() / 2);
        TopRows<T> p{batch, rows, n, lists<T>(g, g_strides), edges<T>(factors[0], strides[0]), {}, {}, rank, keep, at<T>(out)};
        for (int r = 0; r < rank; r++) {
            p.left[r] = edges<T>(factors[1 + r], strides[1 + r]);
            p.right[r] = edges<T>(factors[1 + rank + r], strides[1 + rank + r]);
        }
        return table.low_rank(p, threads);
    });
}

int weigh(bool is_double, int64_t n, const Pointers &g, Pointer w, Pointer out, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.weigh(lists<T>(g), at<const T>(w), n, at<T>(out), threads);
    });
}

void merge(bool is_double, int64_t n, const Pointers &a, const Pointers &b, const Pointers &out, int threads) {
    typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        table.merge(lists<T>(a), lists<T>(b), n, int(out.size()), reinterpret_cast<T *const *>(out.data()), threads);
    });
}

void reduce(bool is_double, int64_t rows, int64_t n, const Pointers &g, int64_t row_stride, int64_t stride, int keep, Pointer out,
            int threads) {
    if (rows * n > 0 && row_stride != 1 && stride != 1) throw nb::value_error("rows lie next to each other, or go on along memory");
    typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        table.reduce(lists<T>(g, {0, row_stride, stride}), rows, n, keep, at<T>(out), threads);
    });
}

int segment(bool is_double, int64_t rows, int64_t n, const Pointers &g, const Strides &g_strides, Pointer index,
            int64_t index_row_stride, int64_t size, int keep, Pointer out) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.segment(lists<T>(g, g_strides), rows, n, at<const int64_t>(index), index_row_stride, size, keep, at<T>(out));
    });
}

int depth(bool is_double, int64_t batch, const Pointers &g, int64_t batch_stride, const Axes &row_axes, const Axes &list_axes, int keep) {
    const Everywhere from(g, batch_stride, row_axes, list_axes);
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.depth(from.spread<T>(), batch, from.rows(), from.lists(), keep);
    });
}

}  // namespace

void bind_topk(nb::module_ &m);
void bind_topk(nb::module_ &m) {
    using nb::arg;
    m.def("top_product", &product, arg("is_double"), arg("batch"), arg("n"), arg("a_ptrs"), arg("a_batch_stride"), arg("a_row_axes"),
          arg("a_list_axes"), arg("w_ptr"), arg("w_strides"), arg("keep"), arg("out_ptr"), arg("threads"),
          "out[s,b,i,j] = the s-th largest a[·,b,i,k]·|w[b,j,k]|, where i and k run over axes of any size and stride: flags");
    m.def("top_low_rank", &low_rank, arg("is_double"), arg("batch"), arg("rows"), arg("n"), arg("g_ptrs"), arg("g_strides"),
          arg("factor_ptrs"), arg("factor_strides"), arg("keep"), arg("out_ptr"), arg("threads"),
          "The same along rows, by a Jacobian of rank one or two beside its diagonal: flags");
    m.def("top_weigh", &weigh, arg("is_double"), arg("n"), arg("g_ptrs"), arg("w_ptr"), arg("out_ptr"), arg("threads"),
          "out = |w|·g: flags");
    m.def("top_merge", &merge, arg("is_double"), arg("n"), arg("a_ptrs"), arg("b_ptrs"), arg("out_ptrs"), arg("threads"),
          "The largest of a's and b's weights, scalar by scalar; out may be a");
    m.def("top_reduce", &reduce, arg("is_double"), arg("rows"), arg("n"), arg("g_ptrs"), arg("row_stride"), arg("stride"), arg("keep"),
          arg("out_ptr"), arg("threads"), "The largest weights of n scalars, for rows that lie next to each other, or go on along memory");
    m.def("top_segment", &segment, arg("is_double"), arg("rows"), arg("n"), arg("g_ptrs"), arg("g_strides"), arg("index_ptr"), arg("index_row_stride"),
          arg("size"), arg("keep"), arg("out_ptr"), "Let lists into those of out that an index names: how many entries are in use");
    m.def("top_depth", &depth, arg("is_double"), arg("batch"), arg("g_ptrs"), arg("g_batch_stride"), arg("g_row_axes"), arg("g_list_axes"), arg("keep"),
          "The largest number of weights in a row, at most `keep`");
}
