// Convolution under max, towards the kernel, as a pruned product: out[(c, tap), o] = max over k = (example, l) of
// |large[c, place(l, tap)]|·|small[o, l]|. Rows are patches (c, tap), columns the channels o of the small side.
//
// The reduced axis is gone through in chunks of lines (rows of positions along the last axis), whose patches are written
// out; the product continues from what earlier chunks found, so that an equal value found later never wins.
#include <memory>
#include <vector>

#include "conv_patches.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t CHUNK = 2048;         // k's at a time, as the product likes them
constexpr int64_t LONGEST_LINE = 4096;  // longer ones would need too much memory for each row of patches

int64_t volume(const int64_t *size) { return size[0] * size[1] * size[2]; }

// Results (c, tap) of one group from begin on.
struct RowRange {
    int64_t group, begin, end;
    int64_t count() const { return end - begin; }
};

template <class T> class Patches {
  public:
    explicit Patches(const ConvWeight<T> &job)
        : job(job), s(job.shape), positions(volume(s.small)), large_positions(volume(s.large)), taps(volume(s.taps)),
          lines(s.batch * s.small[0] * s.small[1]), lines_together(std::max<int64_t>(1, CHUNK / s.small[2])),
          small_data(job.transposed ? job.x : job.g), large_data(job.transposed ? job.g : job.x),
          small_f(job.transposed ? T(1) : T(job.f)), large_f(job.transposed ? T(job.f) : T(1)) {}

    // Rows are numbered through all groups.
    Summary run(int64_t begin, int64_t end) {
        const int64_t rows = s.large_channels * taps;
        const int64_t room = PATCH_BYTES / int64_t(sizeof(T)) / (lines_together * s.small[2]);
        Summary out = nothing_seen();
        for (int64_t x = begin; x < end;) {
            const int64_t group = x / rows, stop = std::min({end, (group + 1) * rows, x + std::max<int64_t>(room, 1)});
            add(out, run_rows({group, x - group * rows, stop - group * rows}));
            x = stop;
        }
        return out;
    }

  private:
    Summary run_rows(const RowRange &range) {
        best.assign(range.count() * s.small_channels, T(0));
        step.assign(range.count() * s.small_channels, -1);
        Summary out = nothing_seen();
        for (int64_t line = 0; line < lines; line += lines_together) {
            const int64_t end = std::min(lines, line + lines_together), depth = (end - line) * s.small[2];
            write_patches(range, line, end);
            write_columns(range.group, line, end);
            const Product<T> product{1, range.count(), s.small_channels, depth,
                                     {patches.data(), 0, depth, 1},
                                     {columns.data(), 0, depth, 1},
                                     best.data(), step.data(), line * s.small[2]};
            out.flags |= max_product(product, nullptr, Variant::pruned).flags;
        }
        write_results(range);
        return out;
    }

    // One row after the other, (c, tap) × k.
    void write_patches(const RowRange &range, int64_t line, int64_t end) {
        patches.resize(range.count() * (end - line) * s.small[2]);
        T *to = patches.data();
        for (int64_t row = range.begin; row < range.end; row++) {
            const int64_t c = row / taps, tap = row % taps;
            const int64_t k[3] = {tap / (s.taps[1] * s.taps[2]), tap / s.taps[2] % s.taps[1], tap % s.taps[2]};
            for (int64_t x = line; x < end; x++, to += s.small[2]) {
                const int64_t at1 = place(1, x % s.small[1], k[1]), at0 = place(0, x / s.small[1] % s.small[0], k[0]);
                const int64_t n = x / (s.small[0] * s.small[1]);
                if (at0 < 0 || at0 >= s.large[0] || at1 < 0 || at1 >= s.large[1]) {
                    std::fill_n(to, s.small[2], T(0));
                    continue;
                }
                const T *from = large_data + ((n * s.groups + range.group) * s.large_channels + c) * large_positions;
                write_line(from + (at0 * s.large[1] + at1) * s.large[2], k[2], to);
            }
        }
    }
    int64_t place(int d, int64_t l, int64_t k) const { return l * s.stride[d] + k * s.dilation[d] - s.padding[d]; }

    // The magnitudes that positions of one line meet through a tap, zeros outside.
    void write_line(const T *from, int64_t k, T *to) const {
        const int64_t stride = s.stride[2], first = place(2, 0, k), n = s.small[2];
        const int64_t begin = std::min(n, first < 0 ? (-first + stride - 1) / stride : 0);
        const int64_t end = std::max(begin, std::min(n, (s.large[2] - first + stride - 1) / stride));
        for (int64_t l = 0; l < begin; l++) to[l] = 0;
        if (stride == 1)
            for (int64_t l = begin; l < end; l++) to[l] = std::abs(from[first + l]) * large_f;
        else
            for (int64_t l = begin; l < end; l++) to[l] = std::abs(from[first + l * stride]) * large_f;
        for (int64_t l = end; l < n; l++) to[l] = 0;
    }

    // channel × k
    void write_columns(int64_t group, int64_t line, int64_t end) {
        const int64_t depth = (end - line) * s.small[2], from = line * s.small[2];
        columns.resize(s.small_channels * depth);
        for (int64_t k = 0; k < depth;) {
            const int64_t n = (from + k) / positions, l = (from + k) % positions, count = std::min(positions - l, depth - k);
            const T *example = small_data + (n * s.groups + group) * s.small_channels * positions + l;
            for (int64_t o = 0; o < s.small_channels; o++)
                for (int64_t i = 0; i < count; i++) columns[o * depth + k + i] = std::abs(example[o * positions + i]) * small_f;
            k += count;
        }
    }

    // (c, tap) × o to o × (c, tap), and steps to winners.
    void write_results(const RowRange &range) {
        constexpr int64_t SOME = 16;  // rows at a time: a cache line of each channel
        for (int64_t from = range.begin; from < range.end; from += SOME)
            for (int64_t o = 0; o < s.small_channels; o++)
                for (int64_t row = from; row < std::min(range.end, from + SOME); row++) {
                    const int64_t at = (row - range.begin) * s.small_channels + o;
                    const int64_t to = (range.group * s.small_channels + o) * s.large_channels * taps + row;
                    job.out[to] = best[at];
                    job.arg[to] = step[at] < 0 ? -1 : winner(range.group, row, o, step[at]);
                }
    }
    int32_t winner(int64_t group, int64_t row, int64_t o, int32_t k) const {
        const int64_t n = k / int32_t(positions), l = k % int32_t(positions);
        if (!job.transposed) return int32_t(((n * s.groups + group) * s.small_channels + o) * positions + l);
        const int64_t c = row / taps, tap = row % taps;
        const int64_t at0 = place(0, l / (s.small[1] * s.small[2]), tap / (s.taps[1] * s.taps[2]));
        const int64_t at1 = place(1, l / s.small[2] % s.small[1], tap / s.taps[2] % s.taps[1]);
        const int64_t at2 = place(2, l % s.small[2], tap % s.taps[2]);
        return int32_t(((n * s.groups + group) * s.large_channels + c) * large_positions + (at0 * s.large[1] + at1) * s.large[2] + at2);
    }

    const ConvWeight<T> &job;
    const ConvShape &s;
    const int64_t positions, large_positions, taps, lines, lines_together;
    const T *small_data, *large_data;
    const T small_f, large_f;
    std::vector<T> patches, columns, best;
    std::vector<int32_t> step;
};

// NaN anywhere in an operand, also where no tap reaches, and cotangents that vanish when scaled.
template <class T> int look_through(const T *data, int64_t n, T f, int threads) {
    const auto look = [&](int64_t begin, int64_t end) {
        Packed<T> learned;
        for (int64_t i = begin; i < end; i += LANES<T>) learned.take(load(data + i, end - i), all(f));
        Summary out = nothing_seen();
        out.flags = learned.flags();
        return out;
    };
    return share(n, n, threads, look).flags;
}

}  // namespace

template <class T> bool weight_suits_patches(const ConvWeight<T> &job) {
    const ConvShape &s = job.shape;
    return s.small[2] <= LONGEST_LINE &&
           worth_patches(s.large_channels * volume(s.taps), s.small_channels, s.batch * volume(s.small));
}

template <class T> Summary weight_by_patches(const ConvWeight<T> &job, int threads) {
    const ConvShape &s = job.shape;
    const int64_t rows = s.groups * s.large_channels * volume(s.taps), small = s.groups * s.small_channels * s.batch * volume(s.small);
    const int64_t large = s.groups * s.large_channels * s.batch * volume(s.large);
    const int64_t work = rows * s.small_channels * s.batch * volume(s.small) / 16;
    Summary out = share(rows, work, threads, [&](int64_t begin, int64_t end) { return Patches<T>(job).run(begin, end); });
    out.flags |= look_through(job.x, job.transposed ? small : large, T(1), threads);
    out.flags |= look_through(job.g, job.transposed ? large : small, T(job.f), threads);
    return out;
}

template bool weight_suits_patches(const ConvWeight<float> &);
template bool weight_suits_patches(const ConvWeight<double> &);
template Summary weight_by_patches(const ConvWeight<float> &, int);
template Summary weight_by_patches(const ConvWeight<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
