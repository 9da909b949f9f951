// Rows of n1·n2 scalars, wherever they lie, as contiguous lines.
#pragma once

#include <algorithm>
#include <memory>

#include "rows/rows.hpp"
#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {

struct Sizes {
    int64_t n1, n2;
    int64_t n() const { return n1 * n2; }
};

template <class T> bool is_line(const Rows<T> &r, const Sizes &s) {
    return (s.n2 == 1 || r.n2 == 1) && (s.n1 == 1 || r.n1 == s.n2 * (s.n2 == 1 ? 1 : r.n2));
}

// One operand's rows; those that aren't lines are copied to a buffer.
template <class T> class Reader {
  public:
    Reader(const Rows<const T> &rows, const Sizes &sizes) : rows(rows), sizes(sizes) {
        if (rows.data && !is_line(rows, sizes)) buffer.reset(new T[sizes.n()]);
    }
    // Null where there is no such operand.
    const T *line(int64_t row) {
        const T *from = rows.data ? rows.data + row * rows.row : nullptr;
        if (!buffer) return from;
        if (held && rows.row == 0) return buffer.get();
        if (rows.n1 == 0 && rows.n2 == 0)
            std::fill_n(buffer.get(), sizes.n(), *from);
        else if (rows.n2 == 1)
            for (int64_t i = 0; i < sizes.n1; i++) std::copy_n(from + i * rows.n1, sizes.n2, buffer.get() + i * sizes.n2);
        else
            for (int64_t i = 0; i < sizes.n1; i++)
                for (int64_t k = 0; k < sizes.n2; k++) buffer[i * sizes.n2 + k] = from[i * rows.n1 + k * rows.n2];
        held = true;
        return buffer.get();
    }

  private:
    Rows<const T> rows;
    Sizes sizes;
    std::unique_ptr<T[]> buffer;
    bool held = false;  // a row that all rows share is copied once
};

// Where results and winners are written; what isn't a line goes through a buffer.
template <class T> class Writer {
  public:
    Writer(const Rows<T> &out, int32_t *arg, const Sizes &sizes, int16_t *short_arg = nullptr)
        : out(out), arg(arg), short_arg(short_arg), sizes(sizes) {
        if (!is_line(out, sizes)) values.reset(new T[sizes.n()]);
        if (values || short_arg) indices.reset(new int32_t[sizes.n()]);
    }
    T *line(int64_t row) { return values ? values.get() : out.data + row * out.row; }
    int32_t *arg_line(int64_t row) { return indices ? indices.get() : arg + row * out.row; }
    void finish(int64_t row) {
        if (values) copy(values.get(), out.data, row);
        if (short_arg)
            copy(indices.get(), short_arg, row);
        else if (indices)
            copy(indices.get(), arg, row);
    }

  private:
    template <class From, class To> void copy(const From *from, To *to, int64_t row) const {
        for (int64_t i = 0; i < sizes.n1; i++, from += sizes.n2) {
            To *line = to + row * out.row + i * out.n1;
            if (out.n2 == 1)  // a loop of its own, which is wide
                for (int64_t k = 0; k < sizes.n2; k++) line[k] = To(from[k]);
            else
                for (int64_t k = 0; k < sizes.n2; k++) line[k * out.n2] = To(from[k]);
        }
    }

    Rows<T> out;
    int32_t *arg;
    int16_t *short_arg;
    Sizes sizes;
    std::unique_ptr<T[]> values;
    std::unique_ptr<int32_t[]> indices;
};

// The two largest of a vector's lanes together with their seconds: (largest, second largest).
template <class T> struct TopTwo {
    Vec<T> first{}, second{};
    void add(Vec<T> v) {  // not a NaN
        second = larger(smaller(v, first), second);
        first = larger(v, first);
    }
    void add(const TopTwo &o) {
        second = larger(smaller(first, o.first), larger(second, o.second));
        first = larger(first, o.first);
    }
    T largest() const { return highest<T>(first); }
    T second_largest(T largest) const {
        const int lane = gradtrace::GRADTRACE_ISA::first<T>(first == largest);
        const Vec<T> rest = lane_numbers<T>() == all_int<T>(lane) ? second : first;
        return highest<T>(rest);  // that lane's own second is in, the others' are below their first
    }
};

}  // namespace gradtrace::GRADTRACE_ISA
