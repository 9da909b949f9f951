// Python's view of the row kernels. Pointers come in as integers, 0 where there is none.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <vector>

#include "rows/rows.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

using Pointer = uintptr_t;
using Strides = std::array<int64_t, 3>;
using Extent = std::tuple<double, double, int>;  // largest result, smallest that isn't zero, flags

template <class T> T *at(Pointer p) { return reinterpret_cast<T *>(p); }
template <class T> Rows<T> rows_at(Pointer p, const Strides &s) { return {at<T>(p), s[0], s[1], s[2]}; }

template <class T> const RowKernels<T> &kernels();
template <> const RowKernels<float> &kernels<float>() { return GRADTRACE_PICK(rows_table).single; }
template <> const RowKernels<double> &kernels<double>() { return GRADTRACE_PICK(rows_table).dual; }

// Calls f with a number of the type asked for, without the interpreter's lock.
template <class F> Extent typed(bool is_double, F f) {
    nb::gil_scoped_release unlocked;
    const Summary s = is_double ? f(double()) : f(float());
    return {s.max, s.min, s.flags};
}

Extent scale(bool is_double, int kind, const std::vector<int64_t> &shape, Pointer g, const std::vector<int64_t> &g_strides,
             Pointer w, const std::vector<int64_t> &w_strides, double c, double f, Pointer out, int threads) {
    const size_t dims = shape.size();
    if (dims > MAX_DIMS || g_strides.size() != dims || (w && w_strides.size() != dims))
        throw nb::value_error("at most 8 axes, and a stride for each");
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        Scale<T> s{kind == 5 ? Weight::constant : Weight(kind), c, f, int(dims), {}, {}, {}, at<const T>(g), at<const T>(w), at<T>(out)};
        for (size_t d = 0; d < dims; d++) {
            s.shape[d] = shape[d];
            s.g_stride[d] = g_strides[d];
            s.w_stride[d] = w ? w_strides[d] : 0;
        }
        if (!w) std::copy(s.g_stride, s.g_stride + dims, s.w_stride);  // no operand, nothing to step through
        return kernels<T>().scale(s, threads);
    });
}

Extent merge(bool is_double, int64_t n, Pointer a, double fa, Pointer b, double fb, Pointer a_index, Pointer b_index,
             Pointer choice, int32_t ordinal, bool wide_choice, int threads) {
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        const Merge<T> m{n, fa, fb, at<T>(a), at<const T>(b), at<int32_t>(a_index), at<const int32_t>(b_index),
                         wide_choice ? nullptr : at<uint8_t>(choice), wide_choice ? at<int32_t>(choice) : nullptr, ordinal};
        return kernels<T>().merge(m, threads);
    });
}

Extent reduce_max(bool is_double, int64_t outer, std::array<int64_t, 2> n, int64_t inner, Pointer g,
                  std::array<int64_t, 4> gs, Pointer w, std::array<int64_t, 4> ws, double f, Pointer out, Pointer index, int threads) {
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        const Reduce<T> r{outer, n[0], n[1], inner, {at<const T>(g), gs[0], gs[1], gs[2], gs[3]},
                          {at<const T>(w), ws[0], ws[1], ws[2], ws[3]}, f, at<T>(out), at<int32_t>(index)};
        return kernels<T>().reduce_max(r, threads);
    });
}

Extent reduce_max_1(bool is_double, int64_t outer, int64_t n, int64_t inner, Pointer g, const Strides &gs, Pointer w,
                    const Strides &ws, double f, Pointer out, Pointer index, int threads) {
    return reduce_max(is_double, outer, {1, n}, inner, g, {gs[0], 0, gs[1], gs[2]}, w, {ws[0], 0, ws[1], ws[2]}, f, out, index, threads);
}

Extent segment_max(bool is_double, int64_t batch, int64_t rows, int64_t inner, int64_t size, Pointer g, Pointer index, double f,
                   Pointer out, Pointer arg, bool init, Pointer choice, int32_t ordinal, bool wide_choice, int threads) {
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        const Segment<T> s{batch, rows, inner, size, at<const T>(g), at<const int64_t>(index), f, at<T>(out), at<int32_t>(arg),
                           wide_choice ? nullptr : at<uint8_t>(choice), wide_choice ? at<int32_t>(choice) : nullptr, ordinal, init};
        return kernels<T>().segment_max(s, threads);
    });
}

Extent rank_one(bool is_double, int kind, int64_t rows, int64_t n1, int64_t n2, Pointer g, const Strides &gs, Pointer own,
                const Strides &own_s, Pointer left, const Strides &left_s, Pointer right, const Strides &right_s, double f,
                Pointer out, const Strides &out_s, Pointer arg, int threads) {
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        const RankOne<T> r{RankOneKind(kind), rows, n1, n2, rows_at<const T>(g, gs), rows_at<const T>(own, own_s),
                           rows_at<const T>(left, left_s), rows_at<const T>(right, right_s), f, rows_at<T>(out, out_s), at<int32_t>(arg)};
        return kernels<T>().rank_one(r, threads);
    });
}

Extent rank_two(bool is_double, int64_t rows, int64_t n1, int64_t n2, Pointer g, const Strides &gs, Pointer own,
                const Strides &own_s, Pointer left0, const Strides &left0_s, Pointer left1, const Strides &left1_s, Pointer t,
                const Strides &ts, double f, Pointer out, const Strides &out_s, Pointer arg, int threads) {
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        const RankTwo<T> r{rows, n1, n2, rows_at<const T>(g, gs), rows_at<const T>(own, own_s), rows_at<const T>(left0, left0_s),
                           rows_at<const T>(left1, left1_s), rows_at<const T>(t, ts), f, rows_at<T>(out, out_s), at<int32_t>(arg)};
        return kernels<T>().rank_two(r, threads);
    });
}

Extent standard(bool is_double, bool double_factors, int64_t rows, int64_t n1, int64_t n2, Pointer g, const Strides &gs, Pointer hat,
                const Strides &hat_s, Pointer gamma, const Strides &gamma_s, Pointer scale, const Strides &scale_s,
                double count, double f, Pointer out, const Strides &out_s, Pointer arg, bool short_arg, int threads) {
    const auto of = [&](auto number, auto factor) {
        using T = decltype(number);
        using F = decltype(factor);
        return Standard<T, F>{rows, n1, n2, rows_at<const T>(g, gs), rows_at<const F>(hat, hat_s), rows_at<const F>(gamma, gamma_s),
                              rows_at<const F>(scale, scale_s), count, f, rows_at<T>(out, out_s), at<int32_t>(arg),
                              short_arg ? at<int16_t>(arg) : nullptr};
    };
    return typed(is_double, [&](auto number) {
        using T = decltype(number);
        if constexpr (std::is_same_v<T, double>)
            if (!double_factors) return GRADTRACE_PICK(rows_table).mixed(of(number, float()), threads);
        return kernels<T>().standard(of(number, number), threads);
    });
}

int meeting(bool is_double, int64_t rows, int64_t n1, int64_t n2, Pointer left0, const Strides &left0_s, Pointer left1,
              const Strides &left1_s, Pointer right0, const Strides &right0_s, Pointer right1, const Strides &right1_s, int threads) {
    const auto run = [&](auto number) {
        using T = decltype(number);
        const Meeting<T> m{rows, n1, n2, rows_at<const T>(left0, left0_s), rows_at<const T>(left1, left1_s),
                           rows_at<const T>(right0, right0_s), rows_at<const T>(right1, right1_s)};
        return kernels<T>().meeting(m, threads);
    };
    nb::gil_scoped_release unlocked;
    return is_double ? run(double()) : run(float());
}

using PythonCounts = std::vector<std::tuple<uint64_t, int64_t, double>>;

template <class T> std::optional<PythonCounts> counted(Pointer bits, Pointer strength, int64_t n, int threads) {
    Counts found;
    {
        nb::gil_scoped_release unlocked;
        found = kernels<T>().tally(at<const uint64_t>(bits), at<const T>(strength), n, threads);
    }
    if (!found) return std::nullopt;
    PythonCounts out;
    for (const BitCount &e : *found) out.emplace_back(e.bits, e.count, e.strength);
    return out;
}

std::optional<PythonCounts> tally(bool is_double, Pointer bits, Pointer strength, int64_t n, int threads) {
    return is_double ? counted<double>(bits, strength, n, threads) : counted<float>(bits, strength, n, threads);
}

}  // namespace

void bind_conv(nb::module_ &m);
void bind_rows(nb::module_ &m);
void bind_rows(nb::module_ &m) {
    bind_conv(m);
    using nb::arg;
    m.def("scale", &scale, arg("double_"), arg("kind"), arg("shape"), arg("g_ptr"), arg("g_strides"), arg("w_ptr"), arg("w_strides"),
          arg("c"), arg("f"), arg("out_ptr"), arg("threads"), "out = |weight|·f·g: (max, min, flags)");
    m.def("merge", &merge, arg("double_"), arg("n"), arg("a_ptr"), arg("fa"), arg("b_ptr"), arg("fb"), arg("a_index_ptr"),
          arg("b_index_ptr"), arg("choice_ptr"), arg("ordinal"), arg("wide_choice"), arg("threads"),
          "a = max(fa·a, fb·b) in place, b wins ties: (max, min, flags)");
    m.def("reduce_max", &reduce_max_1, arg("double_"), arg("outer"), arg("n"), arg("inner"), arg("g_ptr"), arg("g_strides"),
          arg("w_ptr"), arg("w_strides"), arg("f"), arg("out_ptr"), arg("index_ptr"), arg("threads"),
          "out[o,i] = max over n of |w|·f·g: (max, min, flags)");
    m.def("reduce_max", &reduce_max, arg("double_"), arg("outer"), arg("n"), arg("inner"), arg("g_ptr"), arg("g_strides"), arg("w_ptr"),
          arg("w_strides"), arg("f"), arg("out_ptr"), arg("index_ptr"), arg("threads"), "The same over two axes n = (n1, n2)");
    m.def("segment_max", &segment_max, arg("double_"), arg("batch"), arg("rows"), arg("inner"), arg("size"), arg("g_ptr"),
          arg("index_ptr"), arg("f"), arg("out_ptr"), arg("arg_ptr"), arg("init"), arg("choice_ptr"), arg("ordinal"),
          arg("wide_choice"), arg("threads"), "out[b,index[r],:] = max over r of f·g[b,r,:]: (max, min, flags)");
    m.def("rank_one", &rank_one, arg("double_"), arg("kind"), arg("rows"), arg("n1"), arg("n2"), arg("g_ptr"), arg("g_strides"),
          arg("own_ptr"), arg("own_strides"), arg("left_ptr"), arg("left_strides"), arg("right_ptr"), arg("right_strides"), arg("f"),
          arg("out_ptr"), arg("out_strides"), arg("arg_ptr"), arg("threads"), "A Jacobian of rank one beside its diagonal");
    m.def("rank_two", &rank_two, arg("double_"), arg("rows"), arg("n1"), arg("n2"), arg("g_ptr"), arg("g_strides"), arg("own_ptr"),
          arg("own_strides"), arg("left0_ptr"), arg("left0_strides"), arg("left1_ptr"), arg("left1_strides"), arg("t_ptr"),
          arg("t_strides"), arg("f"), arg("out_ptr"), arg("out_strides"), arg("arg_ptr"), arg("threads"),
          "A Jacobian of rank two beside its diagonal");
    m.def("standard", &standard, arg("double_"), arg("double_factors"), arg("rows"), arg("n1"), arg("n2"), arg("g_ptr"), arg("g_strides"), arg("hat_ptr"),
          arg("hat_strides"), arg("gamma_ptr"), arg("gamma_strides"), arg("scale_ptr"), arg("scale_strides"), arg("count"), arg("f"),
          arg("out_ptr"), arg("out_strides"), arg("arg_ptr"), arg("short_arg"), arg("threads"), "The Jacobian of a normalisation x̂·γ");
    m.def("meeting", &meeting, arg("double_"), arg("rows"), arg("n1"), arg("n2"), arg("left0_ptr"), arg("left0_strides"), arg("left1_ptr"),
          arg("left1_strides"), arg("right0_ptr"), arg("right0_strides"), arg("right1_ptr"), arg("right1_strides"), arg("threads"),
          "Which of left_i · right_j are 0 in some row: flags");
    m.def("tally", &tally, arg("double_"), arg("bits_ptr"), arg("strength_ptr"), arg("n"), arg("threads"),
          "Different bit sets among the live: [(bits, count, strength)], None where there are more than 65536");
}
