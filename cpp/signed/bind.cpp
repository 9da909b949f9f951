// Python's view of the kernels for both ends of a scalar's path weights.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <vector>

#include "signed/signed.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

using Pointer = uintptr_t;
using Pair = std::array<uintptr_t, 2>;
using Strides = std::array<int64_t, 3>;

template <class T> T *at(Pointer p) { return reinterpret_cast<T *>(p); }
template <class T> Ends<T> ends(const Pair &p, const Strides &s) { return {at<const T>(p[0]), at<const T>(p[1]), s[0], s[1], s[2]}; }
template <class T> SignedEdges<T> edges(Pointer data, const Strides &s) { return {at<const T>(data), s[0], s[1], s[2]}; }

// Calls f with the kernels for numbers of the type asked for, without the interpreter's lock.
template <class F> int typed(bool is_double, F f) {
    nb::gil_scoped_release unlocked;
    const SignedTable &table = GRADTRACE_PICK(signed_table);
    return is_double ? f(double(), table.dual) : f(float(), table.single);
}

int product(bool is_double, int64_t batch, int64_t m, int64_t n, int64_t k, const Pair &a, const Strides &a_strides, Pointer w,
            const Strides &w_strides, const Pair &out, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.product({batch, m, n, k, ends<T>(a, a_strides), edges<T>(w, w_strides), at<T>(out[0]), at<T>(out[1])}, threads);
    });
}

int low_rank(bool is_double, int64_t batch, int64_t rows, int64_t n, const Pair &g, const Strides &g_strides,
             const std::vector<uintptr_t> &factors, const std::vector<Strides> &strides, const Pair &out, int threads) {
    if ((factors.size() != 3 && factors.size() != 5) || strides.size() != factors.size())
        throw nb::value_error("own, then left and right of rank one or two, and strides of each");
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        const int rank = int(factors.size() / 2);
        SignedRows<T> p{batch, rows, n, ends<T>(g, g_strides), edges<T>(factors[0], strides[0]), {}, {}, rank, at<T>(out[0]), at<T>(out[1])};
        for (int r = 0; r < rank; r++) {
            p.left[r] = edges<T>(factors[1 + r], strides[1 + r]);
            p.right[r] = edges<T>(factors[1 + rank + r], strides[1 + rank + r]);
        }
        return table.low_rank(p, threads);
    });
}

int scale(bool is_double, int64_t n, Pointer w, const Pair &g, const Pair &out, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.scale({n, at<const T>(w), at<const T>(g[0]), at<const T>(g[1]), at<T>(out[0]), at<T>(out[1])}, threads);
    });
}

}  // namespace

void bind_signed(nb::module_ &m);
void bind_signed(nb::module_ &m) {
    using nb::arg;
    m.def("signed_product", &product, arg("is_double"), arg("batch"), arg("m"), arg("n"), arg("k"), arg("a_ptrs"), arg("a_strides"),
          arg("w_ptr"), arg("w_strides"), arg("out_ptrs"), arg("threads"), "out[b,i,j] = the ends of w[b,j,k]·a[b,i,k]: flags");
    m.def("signed_low_rank", &low_rank, arg("is_double"), arg("batch"), arg("rows"), arg("n"), arg("g_ptrs"), arg("g_strides"),
          arg("factor_ptrs"), arg("factor_strides"), arg("out_ptrs"), arg("threads"),
          "The same along rows, by a Jacobian of rank one or two beside its diagonal: flags");
    m.def("signed_scale", &scale, arg("is_double"), arg("n"), arg("w_ptr"), arg("g_ptrs"), arg("out_ptrs"), arg("threads"),
          "out = the ends of w·g: flags");
}
