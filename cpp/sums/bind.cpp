// Python's view of the kernels for sums. Pointers come in as integers, 0 where there is none; flags go out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <vector>

#include "sums/sums.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

using Pointer = uintptr_t;
using Extent = std::array<int64_t, 3>;   // batch, rows, columns
using Strides = std::array<int64_t, 2>;  // of batch and rows

template <class T> T *at(Pointer p) { return reinterpret_cast<T *>(p); }
template <class T> Matrices<T> matrices(Pointer p, const Extent &n, const Strides &s) { return {at<const T>(p), n[0], n[1], n[2], s[0], s[1]}; }

// Calls f with the kernels for numbers of the type asked for, without the interpreter's lock.
template <class F> int typed(bool is_double, F f) {
    nb::gil_scoped_release unlocked;
    const SumsTable &table = GRADTRACE_PICK(sums_table);
    return is_double ? f(double(), table.dual) : f(float(), table.single);
}
// The same for numbers of one type outside of a product and of one inside.
template <class F> int typed(bool is_double, bool double_inside, F f) {
    nb::gil_scoped_release unlocked;
    const SumsTable &table = GRADTRACE_PICK(sums_table);
    if (!is_double) return f(float(), float(), table.narrow);
    return double_inside ? f(double(), double(), table.wide) : f(double(), float(), table.mixed);
}

int units(bool is_double, const Extent &n, const Strides &strides, Pointer x, bool of_columns, int room, Pointer scale,
          Pointer exponent, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.units({matrices<T>(x, n, strides), of_columns, room, at<T>(scale), at<int32_t>(exponent)}, threads);
    });
}

int raise(bool is_double, bool inside, const Extent &n, const Strides &strides, Pointer x, bool by_column, Pointer scale,
          int squarings, Pointer out, int threads) {
    return typed(is_double, inside, [&](auto outer, auto inner, const auto &table) {
        using T = decltype(outer);
        using U = decltype(inner);
        return table.raise({matrices<T>(x, n, strides), by_column, at<const T>(scale), squarings, at<U>(out)}, threads);
    });
}

int shares(bool is_double, bool inside, const Extent &n, const Strides &strides, Pointer x, Pointer h, bool by_column,
           Pointer scale, Pointer out, Pointer out_h, int threads) {
    return typed(is_double, inside, [&](auto outer, auto inner, const auto &table) {
        using T = decltype(outer);
        using U = decltype(inner);
        return table.shares({matrices<T>(x, n, strides), at<const T>(h), by_column, at<const T>(scale), at<U>(out), at<U>(out_h)}, threads);
    });
}

// Units of each row, or column, and the numbers in them raised, or as shares: what a factor of a product needs.
int prepare(bool is_double, bool inside, const Extent &n, const Strides &strides, Pointer x, Pointer h, bool of_columns, int room,
            int squarings, Pointer exponent, Pointer out, Pointer out_h, int threads) {
    return typed(is_double, inside, [&](auto outer, auto inner, const auto &table) {
        using T = decltype(outer);
        using U = decltype(inner);
        const SumsTable &all = GRADTRACE_PICK(sums_table);
        const Matrices<T> given = matrices<T>(x, n, strides);
        std::vector<T> scale(size_t(n[0] * (of_columns ? n[2] : n[1])));
        const Units<T> units{given, of_columns, room, scale.data(), at<int32_t>(exponent)};
        if constexpr (sizeof(T) == sizeof(double))
            all.dual.units(units, threads);
        else
            all.single.units(units, threads);
        if (out_h) return table.shares({given, at<const T>(h), of_columns, scale.data(), at<U>(out), at<U>(out_h)}, threads);
        return table.raise({given, of_columns, scale.data(), squarings, at<U>(out)}, threads);
    });
}

int settle(bool is_double, bool inside, const Extent &n, Pointer total, Pointer of_row, Pointer of_column, int squarings,
           double least, Pointer out, int threads) {
    return typed(is_double, inside, [&](auto outer, auto inner, const auto &table) {
        using T = decltype(outer);
        using U = decltype(inner);
        return table.settle({at<const U>(total), n[0], n[1], n[2], at<const int32_t>(of_row), at<const int32_t>(of_column),
                             squarings, least, at<T>(out)}, threads);
    });
}

int settle_shares(bool is_double, bool inside, const Extent &n, Pointer total, Pointer mixed, Pointer of_row, Pointer of_column,
                  double least, Pointer z, Pointer h, int threads) {
    return typed(is_double, inside, [&](auto outer, auto inner, const auto &table) {
        using T = decltype(outer);
        using U = decltype(inner);
        return table.settle_shares({at<const U>(total), at<const U>(mixed), n[0], n[1], n[2], at<const int32_t>(of_row),
                                    at<const int32_t>(of_column), least, at<T>(z), at<T>(h)}, threads);
    });
}

int join(bool is_double, int64_t n, Pointer z1, Pointer h1, Pointer z2, Pointer h2, int squarings, Pointer z, Pointer h, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.join({n, at<const T>(z1), at<const T>(h1), at<const T>(z2), at<const T>(h2), squarings, at<T>(z), at<T>(h)}, threads);
    });
}

int reduce(bool is_double, const Extent &n, const Strides &strides, Pointer z, Pointer h, bool along_columns, int squarings,
           Pointer out, Pointer out_h, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.reduce({matrices<T>(z, n, strides), at<const T>(h), along_columns, squarings, at<T>(out), at<T>(out_h)}, threads);
    });
}

int one_rows(bool is_double, int kind, int64_t rows, int64_t n, Pointer own, Pointer left, Pointer right, Pointer z, Pointer h,
             int squarings, Pointer out, Pointer out_h, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.one({kind, rows, n, at<const T>(own), at<const T>(left), at<const T>(right), at<const T>(z), at<const T>(h),
                          squarings, at<T>(out), at<T>(out_h)}, threads);
    });
}

int two_rows(bool is_double, int64_t rows, int64_t n, Pointer own, Pointer left0, Pointer left1, Pointer right0, Pointer right1,
             Pointer z, Pointer h, int squarings, Pointer out, Pointer out_h, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.two({rows, n, at<const T>(own), at<const T>(left0), at<const T>(left1), at<const T>(right0), at<const T>(right1),
                          at<const T>(z), at<const T>(h), squarings, at<T>(out), at<T>(out_h)}, threads);
    });
}

using Lying = std::array<int64_t, 3>;  // strides of rows of n1·n2

template <class T> Rows<T> rows_at(Pointer p, const Lying &s) { return {at<T>(p), s[0], s[1], s[2]}; }

int standard_rows(bool is_double, int64_t rows, int64_t n1, int64_t n2, Pointer hat, const Lying &hat_s, Pointer gamma,
                  const Lying &gamma_s, Pointer scale, const Lying &scale_s, Pointer z, const Lying &z_s, Pointer h, const Lying &h_s,
                  Pointer out, const Lying &out_s, Pointer out_h, const Lying &out_h_s, double count, int squarings, int threads) {
    return typed(is_double, [&](auto number, const auto &table) {
        using T = decltype(number);
        return table.standard({rows, n1, n2, rows_at<const T>(hat, hat_s), rows_at<const T>(gamma, gamma_s),
                               rows_at<const T>(scale, scale_s), rows_at<const T>(z, z_s), rows_at<const T>(h, h_s), count,
                               squarings, rows_at<T>(out, out_s), rows_at<T>(out_h, out_h_s)}, threads);
    });
}

int added_rows(int64_t rows, int64_t n1, int64_t n2, Pointer hat, const Lying &hat_s, Pointer gamma, const Lying &gamma_s,
               Pointer scale, const Lying &scale_s, Pointer g, const Lying &g_s, Pointer out, const Lying &out_s, double count, int threads) {
    nb::gil_scoped_release unlocked;
    return GRADTRACE_PICK(sums_table).added({rows, n1, n2, rows_at<const float>(hat, hat_s), rows_at<const float>(gamma, gamma_s),
                                             rows_at<const float>(scale, scale_s), rows_at<const double>(g, g_s), count,
                                             rows_at<double>(out, out_s)}, threads);
}

}  // namespace

void bind_sums(nb::module_ &m);
void bind_sums(nb::module_ &m) {
    m.def("sum_units", &units, "2^-exponent near the largest magnitude of each row or column");
    m.def("sum_raise", &raise, "out = (|x|·scale)^p: flags");
    m.def("sum_shares", &shares, "out = |x|·scale, out_h = out·(h - log2 out): flags");
    m.def("sum_prepare", &prepare, "Units, and numbers in them, of a factor: flags");
    m.def("sum_settle", &settle, "out = total^(1/p)·2^(row + column): flags");
    m.def("sum_settle_shares", &settle_shares, "z = total·2^(row + column), h = mixed / total + log2 total: flags");
    m.def("sum_join", &join, "Two arrays merged: flags");
    m.def("sum_reduce", &reduce, "Elements merged along rows or columns: flags");
    m.def("sum_one_rows", &one_rows, "A Jacobian of rank one beside its diagonal: flags");
    m.def("sum_two_rows", &two_rows, "A Jacobian of rank two beside its diagonal: flags");
    m.def("sum_standard_rows", &standard_rows, "The Jacobian of a normalisation x̂·γ: flags");
    m.def("sum_added_rows", &added_rows, "The same without absolute values");
}
