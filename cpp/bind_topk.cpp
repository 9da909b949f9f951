// Python's view of the kernels for several path weights a scalar. Lists come in as the addresses of their planes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <vector>

#include "topk.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

using Pointer = uintptr_t;
using Pointers = std::vector<uintptr_t>;
using Strides = std::array<int64_t, 3>;

Lists lists(const Pointers &planes, const Strides &s = {}) {
    return {reinterpret_cast<const double *const *>(planes.data()), int(planes.size()), s[0], s[1], s[2]};
}
Edges edges(Pointer data, bool is_double, const Strides &s = {}) {
    return {reinterpret_cast<const void *>(data), is_double, s[0], s[1], s[2]};
}
double *numbers(Pointer p) { return reinterpret_cast<double *>(p); }
const TopTable &table() { return GRADTRACE_PICK(top_table); }

int product(int64_t batch, int64_t m, int64_t n, int64_t k, const Pointers &a, const Strides &a_strides, Pointer w, bool w_double,
            const Strides &w_strides, int keep, Pointer out, int threads) {
    nb::gil_scoped_release unlocked;
    return table().product({batch, m, n, k, lists(a, a_strides), edges(w, w_double, w_strides), keep, numbers(out)}, threads);
}

int low_rank(int64_t batch, int64_t rows, int64_t n, const Pointers &g, const Strides &g_strides, bool is_double, const Pointers &factors,
             const std::vector<Strides> &strides, int keep, Pointer out, int threads) {
    if ((factors.size() != 3 && factors.size() != 5) || strides.size() != factors.size())
        throw nb::value_error("own, then left and right of rank one or two, and strides of each");
    const int rank = int(factors.size() / 2);
    TopRows p{batch, rows, n, lists(g, g_strides), edges(factors[0], is_double, strides[0]), {}, {}, rank, keep, numbers(out)};
    for (int r = 0; r < rank; r++) {
        p.left[r] = edges(factors[1 + r], is_double, strides[1 + r]);
        p.right[r] = edges(factors[1 + rank + r], is_double, strides[1 + rank + r]);
    }
    nb::gil_scoped_release unlocked;
    return table().low_rank(p, threads);
}

int weigh(int64_t n, const Pointers &g, Pointer w, bool w_double, Pointer out, int threads) {
    nb::gil_scoped_release unlocked;
    return table().weigh(lists(g), edges(w, w_double), n, numbers(out), threads);
}

void merge(int64_t n, const Pointers &a, const Pointers &b, const Pointers &out, int threads) {
    nb::gil_scoped_release unlocked;
    table().merge(lists(a), lists(b), n, int(out.size()), reinterpret_cast<double *const *>(out.data()), threads);
}

void reduce(int64_t rows, int64_t n, const Pointers &g, int64_t stride, int keep, Pointer out, int threads) {
    nb::gil_scoped_release unlocked;
    table().reduce(lists(g, {0, 1, stride}), rows, n, keep, numbers(out), threads);
}

int segment(int64_t rows, int64_t n, const Pointers &g, const Strides &g_strides, Pointer index, int64_t index_row_stride, int64_t size,
            int keep, Pointer out) {
    nb::gil_scoped_release unlocked;
    return table().segment(lists(g, g_strides), rows, n, reinterpret_cast<const int64_t *>(index), index_row_stride, size, keep,
                           numbers(out));
}

int depth(int64_t batch, int64_t rows, int64_t n, const Pointers &g, const Strides &g_strides, int keep) {
    nb::gil_scoped_release unlocked;
    return table().depth(lists(g, g_strides), batch, rows, n, keep);
}

}  // namespace

void bind_topk(nb::module_ &m);
void bind_topk(nb::module_ &m) {
    using nb::arg;
    m.def("top_product", &product, arg("batch"), arg("m"), arg("n"), arg("k"), arg("a_ptrs"), arg("a_strides"), arg("w_ptr"),
          arg("w_double"), arg("w_strides"), arg("keep"), arg("out_ptr"), arg("threads"),
          "out[s,b,i,j] = the s-th largest a[·,b,i,k]·|w[b,j,k]|: flags");
    m.def("top_low_rank", &low_rank, arg("batch"), arg("rows"), arg("n"), arg("g_ptrs"), arg("g_strides"), arg("factors_double"),
          arg("factor_ptrs"), arg("factor_strides"), arg("keep"), arg("out_ptr"), arg("threads"),
          "The same along rows, by a Jacobian of rank one or two beside its diagonal: flags");
    m.def("top_weigh", &weigh, arg("n"), arg("g_ptrs"), arg("w_ptr"), arg("w_double"), arg("out_ptr"), arg("threads"),
          "out = |w|·g: flags");
    m.def("top_merge", &merge, arg("n"), arg("a_ptrs"), arg("b_ptrs"), arg("out_ptrs"), arg("threads"),
          "The largest of a's and b's weights, scalar by scalar; out may be a");
    m.def("top_reduce", &reduce, arg("rows"), arg("n"), arg("g_ptrs"), arg("stride"), arg("keep"), arg("out_ptr"), arg("threads"),
          "The largest weights of n scalars, `stride` apart, for rows that lie next to each other");
    m.def("top_segment", &segment, arg("rows"), arg("n"), arg("g_ptrs"), arg("g_strides"), arg("index_ptr"), arg("index_row_stride"),
          arg("size"), arg("keep"), arg("out_ptr"), "Let lists into those of out that an index names: how many entries are in use");
    m.def("top_depth", &depth, arg("batch"), arg("rows"), arg("n"), arg("g_ptrs"), arg("g_strides"), arg("keep"),
          "The largest number of weights in a row, at most `keep`");
}
