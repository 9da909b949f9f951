// Whether left_i · right_j vanishes for some pair of a row, neither being 0: whether a line and a perpendicular meet.
//
// Each line marks the places of its direction; a perpendicular whose places are not marked meets none of them, and the
// few others are compared with all lines.
#include <cmath>
#include <cstring>
#include <vector>

#include "rows/rows.hpp"
#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr double NEAR = 1e-13;  // of directions: what is further from a right angle has a product that isn't 0
constexpr double FAR = 1e300;   // directions beyond it, and within its inverse, count as one
constexpr int SPARSE = 64;      // bits for each line

// Directions of a row.
template <class T> int directions(const Rows<const T> &a, const Rows<const T> &b, int64_t row, int64_t n1, int64_t n2, double *to) {
    int flags = 0;
    for (int64_t i = 0; i < n1; i++, to += n2) {
        const T *x = a.data + row * a.row + i * a.n1, *y = b.data + row * b.row + i * b.n1;
        bool none = false;
        const auto each = [=, &none](int64_t dx, int64_t dy) {
            for (int64_t j = 0; j < n2; j++) {
                const double found = double(x[j * dx]) / double(y[j * dy]), size = std::fabs(found);
                to[j] = size > FAR ? INF<double> : size < 1 / FAR ? 0.0 : found;
                none |= found != found;
            }
        };
        if (a.n2 == 1 && b.n2 == 1)  // a loop for the compiler to make vectors of
            each(1, 1);
        else
            each(a.n2, b.n2);
        for (int64_t j = 0; none && j < n2; j++) {
            const T first = x[j * a.n2], second = y[j * b.n2];
            if (to[j] != to[j]) flags |= first == 0 && second == 0 ? ABSENT : std::isinf(first) && std::isinf(second) ? MEET : NAN_SEEN;
        }
    }
    return flags;
}

// The lines of a row, and two marks for the direction of each: a Bloom filter.
class Lines {
  public:
    std::vector<double> of;

    explicit Lines(int64_t n) : of(n), marks(1) {
        while (int64_t(64 * marks.size()) < SPARSE * n) marks.resize(2 * marks.size()), shift--;
    }
    void mark() {
        std::fill(marks.begin(), marks.end(), 0);
        for (double x : of) {
            const uint64_t at = hash(x);
            set(uint32_t(at) >> shift), set(uint32_t(at >> 32) >> shift);
        }
    }
    bool meets(double x) const {
        const uint64_t at = hash(x * (1 - 2 * NEAR)), beside = hash(x * (1 + 2 * NEAR));
        if (!marked(at) && !(at != beside && marked(beside))) return false;
        const double room = x < INF<double> ? NEAR * std::fabs(x) : 0;
        bool found = false;
        for (double line : of) found |= line == x || std::fabs(line - x) <= room;
        return found;
    }

  private:
    void set(uint32_t at) { marks[at / 64] |= uint64_t(1) << at % 64; }
    bool is_set(uint32_t at) const { return marks[at / 64] >> at % 64 & 1; }
    bool marked(uint64_t at) const { return is_set(uint32_t(at) >> shift) && is_set(uint32_t(at >> 32) >> shift); }
    // Numbers whose first 20 bits after the point are the same share one.
    static uint64_t hash(double x) {
        uint64_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits = (bits >> 32) * 0x9e3779b97f4a7c15u;
        return bits ^ bits >> 29;
    }
    std::vector<uint64_t> marks;
    int shift = 26;
};

template <class T> int flags_of_row(const Meeting<T> &m, int64_t row, Lines &lines, std::vector<double> &across) {
    int flags = directions(m.left0, m.left1, row, m.n1, m.n2, lines.of.data());
    flags |= directions(m.right1, m.right0, row, m.n1, m.n2, across.data());
    if (flags & MEET) return flags;
    lines.mark();
    for (double x : across)
        if (lines.meets(x == 0 || x == INF<double> ? x : -x)) return flags | MEET;
    return flags;
}

}  // namespace

template <class T> int meeting(const Meeting<T> &m, int threads) {
    const auto some = [&](int64_t begin, int64_t end) {
        Summary found = nothing_seen();
        Lines lines(m.n1 * m.n2);
        std::vector<double> across(m.n1 * m.n2);
        for (int64_t row = begin; row < end; row++) found.flags |= flags_of_row(m, row, lines, across);
        return found;
    };
    return share(m.rows, 8 * m.rows * m.n1 * m.n2, threads, some).flags;
}

template int meeting(const Meeting<float> &, int);
template int meeting(const Meeting<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
