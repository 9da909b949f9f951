// Python's view of the convolutions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "conv/conv.hpp"

namespace nb = nanobind;
using namespace gradtrace;

namespace {

using Sizes = std::vector<int64_t>;
using Extent = std::tuple<double, double, int>;

// One to three numbers, aligned with the last axes.
void spread(const Sizes &given, int64_t missing, int64_t *to) {
    if (given.empty() || given.size() > 3) throw nb::value_error("one to three spatial axes");
    std::fill_n(to, 3, missing);
    std::copy(given.begin(), given.end(), to + 3 - given.size());
}

// In the words of the caller: x, w and y of one call.
ConvShape shape_of(bool transposed, const Sizes &x, const Sizes &w, const Sizes &y, int64_t groups, const Sizes &stride,
                   const Sizes &padding, const Sizes &dilation) {
    ConvShape s{};
    const Sizes &small = transposed ? x : y, &large = transposed ? y : x;
    if (x.size() < 3 || x.size() != y.size() || x.size() != w.size()) throw nb::value_error("x, w and y of three to five axes");
    s.batch = x[0];
    s.groups = groups;
    s.small_channels = small[1] / groups;
    s.large_channels = large[1] / groups;
    spread({small.begin() + 2, small.end()}, 1, s.small);
    spread({large.begin() + 2, large.end()}, 1, s.large);
    spread({w.begin() + 2, w.end()}, 1, s.taps);
    spread(stride, 1, s.stride);
    spread(padding, 0, s.padding);
    spread(dilation, 1, s.dilation);
    return s;
}

template <class T> const ConvKernels<T> &kernels();
template <> const ConvKernels<float> &kernels<float>() { return GRADTRACE_PICK(conv_table).single; }
template <> const ConvKernels<double> &kernels<double>() { return GRADTRACE_PICK(conv_table).dual; }

// Input or weight: both take two operands and give one result.
template <template <class> class Job, class F>
Extent call(bool is_double, const ConvShape &shape, bool transposed, uintptr_t first, uintptr_t g, double f, uintptr_t out,
            uintptr_t arg, F run) {
    nb::gil_scoped_release unlocked;
    auto typed = [&](auto number) {
        using T = decltype(number);
        return run(Job<T>{shape, transposed, reinterpret_cast<const T *>(first), reinterpret_cast<const T *>(g), f,
                          reinterpret_cast<T *>(out), reinterpret_cast<int32_t *>(arg)},
                   kernels<T>());
    };
    const Summary s = is_double ? typed(double()) : typed(float());
    return {s.max, s.min, s.flags};
}

Extent conv_input(bool is_double, bool transposed, const Sizes &x, const Sizes &w, const Sizes &y, int64_t groups,
                  const Sizes &stride, const Sizes &padding, const Sizes &dilation, uintptr_t w_ptr, uintptr_t g_ptr, double f,
                  uintptr_t out, uintptr_t arg, int threads) {
    const ConvShape shape = shape_of(transposed, x, w, y, groups, stride, padding, dilation);
    return call<ConvInput>(is_double, shape, transposed, w_ptr, g_ptr, f, out, arg,
                           [&](const auto &job, const auto &table) { return table.input(job, threads); });
}

Extent conv_weight(bool is_double, bool transposed, const Sizes &x, const Sizes &w, const Sizes &y, int64_t groups,
                   const Sizes &stride, const Sizes &padding, const Sizes &dilation, uintptr_t x_ptr, uintptr_t g_ptr, double f,
                   uintptr_t out, uintptr_t arg, int threads) {
    const ConvShape shape = shape_of(transposed, x, w, y, groups, stride, padding, dilation);
    return call<ConvWeight>(is_double, shape, transposed, x_ptr, g_ptr, f, out, arg,
                            [&](const auto &job, const auto &table) { return table.weight(job, threads); });
}

}  // namespace

void bind_conv(nb::module_ &m);
void bind_conv(nb::module_ &m) {
    using nb::arg;
    m.def("conv_input", &conv_input, arg("double_"), arg("transposed"), arg("x_shape"), arg("w_shape"), arg("y_shape"),
          arg("groups"), arg("stride"), arg("padding"), arg("dilation"), arg("w_ptr"), arg("g_ptr"), arg("f"), arg("out_ptr"),
          arg("arg_ptr"), arg("threads"), "A convolution's strongest edge into each input: (max, min, flags)");
    m.def("conv_weight", &conv_weight, arg("double_"), arg("transposed"), arg("x_shape"), arg("w_shape"), arg("y_shape"),
          arg("groups"), arg("stride"), arg("padding"), arg("dilation"), arg("x_ptr"), arg("g_ptr"), arg("f"), arg("out_ptr"),
          arg("arg_ptr"), arg("threads"), "A convolution's strongest edge into each kernel entry: (max, min, flags)");
}
