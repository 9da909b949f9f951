// Convolution under max, towards the kernel: out[o, c, tap] = max over examples and positions l of
// |small[o, l]|·|large[c, place(l, tap)]|, where one side is the cotangent and the other the input.
//
// The reduced axis is cut into pieces, so that what is packed of both sides stays small, and a piece into groups of
// examples that stay in the cache; results keep their best from one to the next, and a later one has to be strictly
// better. Threads share the results, so they meet only twice a piece: after packing, and at its end.
#include <vector>

#include "conv/patches.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t CACHE = 384 << 10;  // bytes of one panel of the large side that are gone through at a time
constexpr int64_t ROOM = 8 << 20;     // bytes of both sides in a piece

int64_t volume(const int64_t *size) { return size[0] * size[1] * size[2]; }

// Some examples, or some rows of one: begin ≤ l < end along the axis that is cut.
struct Piece {
    int64_t example, examples, begin, end;
};

template <class T> class Pieces {
  public:
    Pieces(const ConvWeight<T> &job, int threads) : job(job), s(job.shape), threads(threads) {
        while (cut < 2 && s.small[cut] == 1 && s.large[cut] == 1) cut++;
        panels = (s.large_channels + WIDTH<T> - 1) / WIDTH<T>;
        rest = volume(s.small) / std::max<int64_t>(1, s.small[cut]);
        large_rest = volume(s.large) / std::max<int64_t>(1, s.large[cut]);
    }

    Summary run() {
        Summary out = nothing_seen();
        const int64_t row = large_rest * WIDTH<T> * int64_t(sizeof(T)) * s.stride[cut];
        const int64_t whole = volume(s.large) * int64_t(sizeof(T)) *
                              std::max<int64_t>(1, s.groups * (panels * WIDTH<T> + s.small_channels));
        const int64_t image = volume(s.large) * WIDTH<T> * int64_t(sizeof(T));
        const int64_t examples = std::max<int64_t>(1, ROOM / whole);
        together = std::max<int64_t>(1, CACHE / image);
        const int64_t rows = whole > ROOM ? std::max<int64_t>(1, CACHE / std::max<int64_t>(1, row)) : s.small[cut];
        for (int64_t n = 0; n < s.batch; n += examples)
            for (int64_t begin = 0; begin < s.small[cut]; begin += rows)
                add(out, piece({n, std::min(examples, s.batch - n), begin, std::min(s.small[cut], begin + rows)}));
        return out;
    }

  private:
    Summary piece(const Piece &p) {
        now = p;
        small_from = p.begin * rest;
        small_size = (p.end - p.begin) * rest;
        const int64_t reach = (s.taps[cut] - 1) * s.dilation[cut];
        const int64_t low = std::max<int64_t>(0, p.begin * s.stride[cut] - s.padding[cut]);
        const int64_t high = std::min(s.large[cut], (p.end - 1) * s.stride[cut] - s.padding[cut] + reach + 1);
        large_from = low * large_rest;
        large_size = std::max<int64_t>(0, high - low) * large_rest;
        pack();
        risky = may_lose(packed_small, packed_large);
        // tasks: group × tap × panel × tile of rows
        const int64_t tiles = (s.small_channels + ROWS - 1) / ROWS, tasks = s.groups * volume(s.taps) * panels * tiles;
        const int64_t work = tasks * ROWS * WIDTH<T> * small_size * p.examples / 16;
        Summary out = share(tasks, work, threads, [&](int64_t begin, int64_t end) { return run_tasks(begin, end, tiles); });
        out.flags |= packed_small.flags() | packed_large.flags();
        return out;
    }

    // small: group·channel × example × position; large: group × panel × example × position × WIDTH.
    void pack() {
        const int64_t channels = s.groups * s.small_channels;
        const T *small_data = job.transposed ? job.x : job.g, *large_data = job.transposed ? job.g : job.x;
        const Vec<T> f = all(T(job.f)), one = all(T(1)), small_f = job.transposed ? one : f, large_f = job.transposed ? f : one;
        small.resize(channels * now.examples * small_size);
        large.resize(s.groups * panels * now.examples * large_size * WIDTH<T>);
        packed_small = {}, packed_large = {};
        const int64_t small_volume = volume(s.small), large_volume = volume(s.large);
        std::vector<Packed<T>> learned(MAX_THREADS * 2);
        const int64_t jobs = now.examples * (channels + s.groups * panels);
        share(jobs, now.examples * (channels * small_size + s.groups * panels * WIDTH<T> * large_size), threads, [&](int64_t begin, int64_t end) {
            Packed<T> of_small, of_large;
            for (int64_t x = begin; x < end; x++) {
                const int64_t e = x % now.examples, which = x / now.examples, n = now.example + e;
                if (which < channels) {
                    const T *from = small_data + (n * channels + which) * small_volume + small_from;
                    T *to = small.data() + (which * now.examples + e) * small_size;
                    of_small.take(from, to, small_size, small_f);
                } else {
                    const int64_t g = (which - channels) / panels, p = (which - channels) % panels;
                    const int64_t c0 = p * WIDTH<T>, count = std::min<int64_t>(WIDTH<T>, s.large_channels - c0);
                    const T *from = large_data + ((n * s.groups + g) * s.large_channels + c0) * large_volume + large_from;
                    T *to = large.data() + ((g * panels + p) * now.examples + e) * large_size * WIDTH<T>;
                    transpose(from, large_volume, count, to, large_f, of_large);
                }
            }
#ifdef _OPENMP
            const int me = omp_get_thread_num();
#else
            const int me = 0;
#endif
            learned[2 * me].add(of_small);
            learned[2 * me + 1].add(of_large);
            return nothing_seen();
        });
        for (int t = 0; t < MAX_THREADS; t++) packed_small.add(learned[2 * t]), packed_large.add(learned[2 * t + 1]);
    }

    // channel × position, channels far apart, to position × WIDTH.
    void transpose(const T *from, int64_t apart, int64_t count, T *to, Vec<T> f, Packed<T> &learned) const {
        constexpr int64_t SOME = 64;
        T lines[WIDTH<T>][SOME] = {};
        for (int64_t l = 0; l < large_size; l += SOME) {
            const int64_t n = std::min(SOME, large_size - l);
            for (int64_t c = 0; c < count; c++) learned.take(from + c * apart + l, lines[c], n, f);
            for (int64_t x = 0; x < n; x++)
                for (int64_t c = 0; c < WIDTH<T>; c++) to[(l + x) * WIDTH<T> + c] = lines[c][x];
        }
    }

    // Where the positions l that meet the large side through a tap lie, in both packed sides and in g.
    struct Steps {
        std::vector<int32_t> small, large;
        std::vector<int64_t> g;
    };
    Steps steps_of(int64_t tap, int64_t from, int64_t to) const {
        const int64_t k[3] = {tap / (s.taps[1] * s.taps[2]), tap / s.taps[2] % s.taps[1], tap % s.taps[2]};
        const int64_t channels = s.groups * (job.transposed ? s.large_channels : s.small_channels);
        Steps out;
        int64_t begin[3] = {0, 0, 0}, end[3] = {s.small[0], s.small[1], s.small[2]}, l[3];
        begin[cut] = now.begin, end[cut] = now.end;
        for (int64_t e = from; e < to; e++)
            for (l[0] = begin[0]; l[0] < end[0]; l[0]++)
                for (l[1] = begin[1]; l[1] < end[1]; l[1]++)
                    for (l[2] = begin[2]; l[2] < end[2]; l[2]++) {
                        int64_t at_small = 0, at_large = 0;
                        bool inside = true;
                        for (int d = 0; d < 3; d++) {
                            const int64_t place = l[d] * s.stride[d] + k[d] * s.dilation[d] - s.padding[d];
                            inside &= place >= 0 && place < s.large[d];
                            at_small = at_small * s.small[d] + l[d];
                            at_large = at_large * s.large[d] + place;
                        }
                        if (!inside) continue;
                        out.small.push_back(int32_t(e * small_size + at_small - small_from));
                        out.large.push_back(int32_t((e * large_size + at_large - large_from) * WIDTH<T>));
                        const int64_t size = volume(job.transposed ? s.large : s.small);
                        out.g.push_back((now.example + e) * channels * size + (job.transposed ? at_large : at_small));
                    }
        return out;
    }

    Summary run_tasks(int64_t begin, int64_t end, int64_t tiles) {
        bool lost = false;
        for (int64_t from = 0; from < now.examples; from += together) {
            Steps steps;
            int64_t steps_tap = -1;
            for (int64_t x = begin; x < end; x++) {
                const int64_t tile = x % tiles, panel = x / tiles % panels, rest_of_x = x / tiles / panels;
                const int64_t group = rest_of_x % s.groups, tap = rest_of_x / s.groups;
                if (tap != steps_tap) steps = steps_of(tap, from, std::min(from + together, now.examples)), steps_tap = tap;
                run_tile(group, tap, panel, tile * ROWS, steps, lost);
            }
        }
        Summary out = nothing_seen();
        out.flags = lost ? LOST : 0;
        return out;
    }

    void run_tile(int64_t group, int64_t tap, int64_t panel, int64_t row, const Steps &steps, bool &lost) {
        const int64_t filled = std::min<int64_t>(ROWS, s.small_channels - row);
        const int64_t count = std::min<int64_t>(WIDTH<T>, s.large_channels - panel * WIDTH<T>), taps = volume(s.taps);
        Tile<T> tile;
        for (int64_t r = 0; r < ROWS; r++)
            tile.a[r] = small.data() + (group * s.small_channels + row + (r < filled ? r : 0)) * now.examples * small_size;
        tile.b = large.data() + (group * panels + panel) * now.examples * large_size * WIDTH<T>;
        tile.a_at = steps.small.data();
        tile.b_at = steps.large.data();
        tile.steps = int64_t(steps.small.size());
        auto result = [&](int64_t r, int64_t c) {
            return ((group * s.small_channels + row + r) * s.large_channels + panel * WIDTH<T> + c) * taps + tap;
        };
        for (int64_t r = 0; r < ROWS; r++) {
            T best[WIDTH<T>] = {};
            for (int64_t c = 0; r < filled && c < count; c++) best[c] = job.out[result(r, c)];
            for (int v = 0; v < VECTORS; v++) tile.best[r][v] = load(best + v * LANES<T>);
        }
        gradtrace::GRADTRACE_ISA::run(tile, count);
        const int64_t size = volume(job.transposed ? s.large : s.small);
        for (int r = 0; r < filled; r++)
            for (int v = 0; v * LANES<T> < count; v++) {
                if (risky && any(tile.best[r][v] < TINY<T>)) lost |= any((tile.best[r][v] < TINY<T>)&possible(tile, r, v));
                const Int<T> step = tile.step[r][v];
                if (!any(step >= 0)) continue;
                for (int64_t l = 0; l < LANES<T> && v * LANES<T> + l < count; l++) {
                    if (step[l] < 0) continue;
                    const int64_t c = v * LANES<T> + l, at = result(r, c);
                    const int64_t channel = job.transposed ? group * s.large_channels + panel * WIDTH<T> + c
                                                           : group * s.small_channels + row + r;
                    job.out[at] = tile.best[r][v][l];
                    job.arg[at] = int32_t(steps.g[step[l]] + channel * size);
                }
            }
    }

    const ConvWeight<T> &job;
    const ConvShape &s;
    const int threads;
    int cut = 0;
    int64_t panels, rest, large_rest;  // rest: scalars per row along the axis that is cut
    int64_t together = 1;              // examples gone through at a time
    Piece now{};
    int64_t small_from = 0, small_size = 0, large_from = 0, large_size = 0;
    std::vector<T> small, large;
    Packed<T> packed_small, packed_large;
    bool risky = false;
};

template <class T> Summary extent(const T *out, int64_t numel) {
    Watch<T> watch;
    for (int64_t x = 0; x < numel; x += LANES<T>) watch.result(load(out + x, numel - x), Int<T>{});
    return watch.summary();
}

}  // namespace

template <class T> Summary conv_weight(const ConvWeight<T> &job, int threads) {
    const ConvShape &s = job.shape;
    const int64_t numel = s.groups * s.small_channels * s.large_channels * volume(s.taps);
    const bool empty = numel == 0 || s.batch * volume(s.small) * volume(s.large) == 0;
    if (!empty && weight_suits_patches(job)) {
        Summary out = weight_by_patches(job, threads);
        add(out, extent(job.out, numel));
        if (!(out.flags & LOST)) return out;  // a chunk may have lost what a later one made good
    }
    std::fill_n(job.out, numel, T(0));
    std::fill_n(job.arg, numel, -1);
    if (empty) return nothing_seen();
    Summary out = Pieces<T>(job, threads).run();
    add(out, extent(job.out, numel));
    return out;
}

template Summary conv_weight(const ConvWeight<float> &, int);
template Summary conv_weight(const ConvWeight<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
