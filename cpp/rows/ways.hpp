// Winners as Python describes them: what kernels stored for each scalar of a value, and the ways on to where it leads.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <tuple>
#include <utility>
#include <vector>

namespace gradtrace::rows {

namespace nb = nanobind;

using Pointer = uintptr_t;
using Numbers = std::vector<int64_t>;
using Hop = std::pair<int64_t, int64_t>;  // from a call, or a leaf, to the argument of a call that is entered, by its number

// Flat positions of a shape, as places by strides. Axes along which places go on as along the next are one with it.
struct Axes {
    Numbers size, step;

    Axes(const Numbers &shape, const Numbers &stride, size_t skip = 0) {
        for (size_t d = skip; d < shape.size(); d++) {
            const int64_t n = shape[d], s = stride[d];
            if (n == 1) continue;
            if (!size.empty() && step.back() == s * n) {
                size.back() *= n;
                step.back() = s;
            } else {
                size.push_back(n);
                step.push_back(s);
            }
        }
        if (size.empty()) size = {1}, step = {0};
    }
    // Gives the place, and how many positions from here on go on by the last step.
    std::pair<int64_t, int64_t> at(int64_t flat) const {
        int64_t place = 0, left = 0;
        for (size_t d = size.size(); d-- > 0;) {
            const int64_t n = size[d];
            const bool narrow = uint64_t(flat | n) >> 32 == 0;  // short divisions take a third of the time
            const int64_t above = !d ? 0 : narrow ? int64_t(uint32_t(flat) / uint32_t(n)) : flat / n, here = flat - above * n;
            place += here * step[d];
            if (d + 1 == size.size()) left = n - here;
            flat = above;
        }
        return {place, left};
    }
    int64_t along() const { return step.back(); }
    // Whether no two positions are surely one place.
    bool apart() const {
        std::vector<std::pair<int64_t, int64_t>> by_step;
        for (size_t d = 0; d < size.size(); d++) by_step.emplace_back(std::abs(step[d]), size[d]);
        std::sort(by_step.begin(), by_step.end());
        int64_t reach = 0;
        for (const auto &[s, n] : by_step) {
            if (n > 1 && s <= reach) return false;
            reach += s * (n - 1);
        }
        return true;
    }
};

// What kernels stored of the winners of a value, batch × shape.
struct Plane {
    const char *data;
    int width;  // bytes of an integer; those of one byte have no sign
    int64_t row;
    Axes axes;

    explicit operator bool() const { return data; }
    int64_t operator()(int64_t at) const {
        switch (width) {
        case 1: return reinterpret_cast<const uint8_t *>(data)[at];
        case 2: return reinterpret_cast<const int16_t *>(data)[at];
        default: return reinterpret_cast<const int32_t *>(data)[at];
        }
    }
};

// A way on: to a value, through one call or two. Where strides and stored numbers don't say to which place, Python does.
struct Way {
    std::vector<Hop> hops;
    int64_t target;
    bool rows, straight, split, strided;  // straight: nobody has to know the place
    Axes axes;
    int64_t offset, step;
    const int64_t *table;
    int64_t size, begin;  // of the target; where the target's places begin among those of all ways
    const int64_t *order;  // of an axis of `count` positions, in which the target was seen; null: as it is
    int64_t count, inner;

    int64_t moved(int64_t stored) const { return table ? table[stored] : step * stored; }
    // The place in the target of what was seen at a place.
    int64_t placed(int64_t seen) const {
        if (!order || seen < 0) return seen;
        const int64_t above = seen / inner, outer = above / count;
        return (outer * count + order[above - outer * count]) * inner + (seen - above * inner);
    }
};

struct Winners {
    int64_t numel;
    Plane raw, choice;
    const int64_t *ordinal, *local;  // of each stored number, where several products were put into one
    std::vector<Way> ways;

    // The way that a scalar goes on by, and what is stored of its place there.
    std::pair<size_t, int64_t> chosen(int64_t row, int64_t flat) const {
        const int64_t stored = raw ? std::max<int64_t>(raw(row * raw.row + raw.axes.at(flat).first), 0) : 0;
        if (ordinal) return {size_t(ordinal[stored]), local[stored]};
        return {choice ? size_t(choice(row * choice.row + choice.axes.at(flat).first)) : 0, stored};
    }
};

// (address, bytes of an integer, strides of batch × shape); address 0: there is none.
using GivenPlane = std::tuple<Pointer, int, Numbers>;
// (shape, stored numbers, choices, ordinals and their numbers, ways)
using GivenWinners = std::tuple<Numbers, GivenPlane, GivenPlane, std::pair<Pointer, Pointer>, nb::list>;

inline Plane plane(const GivenPlane &given, const Numbers &shape) {
    const auto &[data, width, stride] = given;
    if (!data) return {nullptr, 0, 0, Axes({}, {})};
    return {reinterpret_cast<const char *>(data), width, stride[0], Axes(shape, Numbers(stride.begin() + 1, stride.end()))};
}

inline Winners winners(const GivenWinners &given) {
    const auto &[shape, raw, choice, terms, ways] = given;
    Winners w{1, plane(raw, shape), plane(choice, shape), reinterpret_cast<const int64_t *>(terms.first), reinterpret_cast<const int64_t *>(terms.second), {}};
    for (int64_t n : shape) w.numel *= n;
    int64_t begin = 0;
    for (nb::handle h : ways) {
        const nb::tuple t = nb::cast<nb::tuple>(h);
        const bool straight = nb::cast<bool>(t[3]), strided = nb::cast<bool>(t[5]);
        const Numbers seen = nb::cast<Numbers>(t[6]), stride = nb::cast<Numbers>(t[7]);
        const auto [order, count, inner] = nb::cast<std::tuple<Pointer, int64_t, int64_t>>(t[12]);
        w.ways.push_back({nb::cast<std::vector<Hop>>(t[0]), nb::cast<int64_t>(t[1]), nb::cast<bool>(t[2]), straight, nb::cast<bool>(t[4]), strided,
                          Axes(seen, stride), nb::cast<int64_t>(t[8]), nb::cast<int64_t>(t[9]),
                          reinterpret_cast<const int64_t *>(nb::cast<Pointer>(t[10])), nb::cast<int64_t>(t[11]), begin,
                          reinterpret_cast<const int64_t *>(order), count, inner});
        if (!straight) begin += w.ways.back().size;
    }
    for (const Way &way : w.ways)
        if (std::max(way.size, w.numel) >> 32) throw nb::value_error("a value of more than 2^32 scalars");
    return w;
}

}  // namespace gradtrace::rows
