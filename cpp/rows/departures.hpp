// Departures: what the scalars of a leaf send along their traces, added up at the first values that they go on to.
#pragma once
#include "rows/ways.hpp"

#include <memory>
#include <new>
#include <stdexcept>
#include <unordered_map>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gradtrace::rows {

// How many paths have come to a scalar, and their weight.
struct Landed {
    uint32_t place, count;
    double weight;
};

// What one row of a leaf sends along one way.
struct Sent {
    size_t ordinal;
    int64_t row;
    std::vector<Landed> units;
    double count, weight;
};

// Places that are gone to, each once, in memory of somebody else's. What is written last may be no new one.
struct Places {
    uint32_t *first;
    size_t size = 0;

    void note(uint32_t place, bool fresh) {
        first[size] = place;
        size += fresh;
    }
};

// The sums at the places of all ways, all of them 0 between one leaf and the next. Zeros are only there once they are written to.
class Cells {
  public:
    void reserve(int64_t n) {
        if (n <= size) return;
        cells.reset(static_cast<Cell *>(std::calloc(size_t(n), sizeof(Cell))));
        if (!cells) throw std::bad_alloc();
        size = n;
    }
    int64_t bytes() const { return size * int64_t(sizeof(Cell)) + places * int64_t(sizeof(uint32_t)); }
    // Gives room to note the places of ways with targets of some sizes in: for what is written last, one more each.
    std::vector<Places> noting(const std::vector<Way> &ways) {
        int64_t whole = 0;
        for (const Way &way : ways) whole += way.size + 1;
        if (whole > places) order.reset(new uint32_t[size_t(whole)]), places = whole;
        std::vector<Places> out;
        uint32_t *first = order.get();
        for (const Way &way : ways) {
            out.push_back({first});
            first += way.size + 1;
        }
        return out;
    }
    // False where the place is out of the way's target. Places are noted where few of them are gone to (`touched`).
    bool add(int64_t begin, int64_t end, int64_t place, double count, double weight, Places *touched) {
        if (place < 0 || place >= end) return false;
        Cell &cell = cells[begin + place];
        if (touched) touched->note(uint32_t(place), cell.count == 0.0);
        cell.count += count;
        cell.weight += weight;
        return true;
    }
    // Takes what has come to a place: (how many paths, their weight).
    std::pair<double, double> taken(int64_t place) {
        Cell &cell = cells[place];
        return {std::exchange(cell.count, 0.0), std::exchange(cell.weight, 0.0)};
    }
    // Takes what has come out of some places, or of all of a way's between two, and leaves zeros.
    Sent gathered(const Places &touched, size_t ordinal, int64_t row, int64_t begin) {
        Sent out{ordinal, row, std::vector<Landed>(touched.size), 0.0, 0.0};
        for (size_t i = 0; i < touched.size; i++) take(out, out.units[i], begin, touched.first[i]);
        return out;
    }
    Sent gathered(size_t ordinal, int64_t row, int64_t begin, int64_t first, int64_t end) {
        size_t come = 0;
        for (int64_t place = first; place < end; place++) come += cells[begin + place].count != 0.0;
        Sent out{ordinal, row, std::vector<Landed>(come + 1), 0.0, 0.0};  // what has not come is written over
        Landed *unit = out.units.data();
        for (int64_t place = first; place < end; place++) unit += take(out, *unit, begin, uint32_t(place));
        out.units.resize(come);
        return out;
    }
    // Adds what another one has from one cell to another, and leaves zeros there.
    void take_over(Cells &other, int64_t first, int64_t end) {
        for (int64_t at = first; at < end; at++) {
            const auto [count, weight] = other.taken(at);
            cells[at].count += count;
            cells[at].weight += weight;
        }
    }

  private:
    struct Cell {
        double count, weight;
    };
    bool take(Sent &out, Landed &unit, int64_t begin, uint32_t place) {
        const auto [count, weight] = taken(begin + place);
        unit = {place, uint32_t(count), weight};
        out.count += count;
        out.weight += weight;
        return count != 0.0;
    }
    struct Free {
        void operator()(Cell *p) const { std::free(p); }
    };
    std::unique_ptr<Cell[], Free> cells;
    std::unique_ptr<uint32_t[]> order;
    int64_t size = 0, places = 0;
};

// Memory that one leaf after the other is added up in, by thread; some of it is kept for the next trace. With the interpreter's lock.
struct Scratch {
    Scratch() : cells(std::move(spare())) { spare().clear(); }
    Scratch(const Scratch &) = delete;
    ~Scratch() {
        constexpr int64_t KEPT = int64_t(32) << 20;
        int64_t bytes = 0;
        for (const Cells &c : cells) bytes += c.bytes();
        if (bytes <= KEPT) spare() = std::move(cells);
    }
    std::vector<Cells> cells;

  private:
    static std::vector<Cells> &spare() {
        static std::vector<Cells> kept;
        return kept;
    }
};

constexpr const char *ASTRAY = "a winner leads out of its consumer's results";

[[noreturn]] inline void astray(Scratch &scratch) {
    scratch.cells.clear();  // which are not zeros any more
    throw std::out_of_range(ASTRAY);
}

class Departures {
  public:
    // Of scalars that are live: those of a weight above 0, unless `live` has other numbers that are.
    Departures(Scratch &scratch, const GivenWinners &given, int64_t rows, bool is_double, Pointer weight, Pointer live, int threads) {
        const Winners w = winners(given);
        if (is_double)
            all_of(scratch, w, rows, reinterpret_cast<const double *>(weight), reinterpret_cast<const double *>(live), threads);
        else
            all_of(scratch, w, rows, reinterpret_cast<const float *>(weight), reinterpret_cast<const float *>(live), threads);
    }

    std::vector<Sent> sent;

    // By row (how many traces, their weight).
    std::vector<std::pair<double, double>> totals(size_t rows) const {
        std::vector<std::pair<double, double>> out(rows, {0.0, 0.0});
        for (const Sent &s : sent) {
            out[size_t(s.row)].first += s.count;
            out[size_t(s.row)].second += s.weight;
        }
        return out;
    }

    // (number, ordinal of the way, row, positions, stored numbers) of what Python has to say the places of.
    nb::list open() const {
        nb::list out;
        for (size_t n = 0; n < opened.size(); n++) {
            const nb::bytes at(reinterpret_cast<const char *>(opened[n].from.data()), opened[n].from.size() * sizeof(int64_t));
            const nb::bytes stored(reinterpret_cast<const char *>(opened[n].stored.data()), opened[n].stored.size() * sizeof(int64_t));
            out.append(nb::make_tuple(n, opened[n].ordinal, opened[n].row, at, stored));
        }
        return out;
    }

    // Says them.
    void place(size_t number, Pointer places, int64_t size) {
        const Open &o = opened[number];
        const int64_t *at = reinterpret_cast<const int64_t *>(places);
        Cells cells;
        cells.reserve(size);
        std::vector<uint32_t> order(size_t(size) + 1);
        Places touched{order.data()};
        bool inside = true;
        for (size_t i = 0; i < o.weight.size(); i++) inside &= cells.add(0, size, at[i], 1.0, o.weight[i], &touched);
        if (!inside) throw std::out_of_range(ASTRAY);
        sent.push_back(cells.gathered(touched, o.ordinal, o.row, 0));
    }

    // Counts sets of components, which the places that units have come to have: (row, set, count, weight).
    // sources: by way (address of the sets, or 0, how many a row has, whether rows have their own, what is in all of them).
    template <class Word> std::vector<std::tuple<int64_t, int64_t, double, double>> tally(const std::vector<std::tuple<Pointer, int64_t, bool, int64_t>> &sources) const {
        std::vector<std::tuple<int64_t, int64_t, double, double>> out;
        int64_t rows = 0;
        for (const Sent &s : sent) rows = std::max(rows, s.row + 1);
        std::vector<std::unordered_map<int64_t, std::pair<double, double>>> sums{size_t(rows)};
        for (const Sent &s : sent) {
            const auto &[address, size, own, also] = sources[s.ordinal];
            auto &sum = sums[size_t(s.row)];
            if (!address) {
                auto &[count, weight] = sum[also];
                count += s.count;
                weight += s.weight;
                continue;
            }
            const Word *bits = reinterpret_cast<const Word *>(address) + (own ? s.row * size : 0);
            std::pair<double, double> *known = nullptr;
            int64_t last = 0;
            for (const Landed &u : s.units) {
                const int64_t set = also | int64_t(bits[u.place]);
                if (!known || set != last) known = &sum[last = set];
                known->first += double(u.count);
                known->second += u.weight;
            }
        }
        for (int64_t row = 0; row < rows; row++)
            for (const auto &[set, amount] : sums[size_t(row)]) out.emplace_back(row, set, amount.first, amount.second);
        return out;
    }

  private:
    // Units of one row and way, whose places Python has to say.
    struct Open {
        size_t ordinal;
        int64_t row;
        Numbers from, stored;
        std::vector<double> weight;
    };

    static constexpr int64_t BLOCK = 64;  // scalars that are looked at together

    std::vector<Open> opened;

    // The number of this thread among those that share the rows.
    static int here() {
#ifdef _OPENMP
        return omp_get_thread_num();
#else
        return 0;
#endif
    }

    template <class T> void all_of(Scratch &scratch, const Winners &w, int64_t rows, const T *weight, const T *live, int threads) {
        constexpr int64_t SERIAL = 1 << 15;  // scalars below which waking a thread costs more than it saves
        constexpr int64_t WHOLE = 1 << 14;   // and those of one row, which are added up by all threads, each with sums of its own
        if (rows == 1 && threads > 1 && w.numel >= WHOLE && dense(w, 1)) return one_row(scratch, w, weight, live, threads);
        [[maybe_unused]] const int team = rows * w.numel < SERIAL ? 1 : int(std::min<int64_t>(threads, rows));
        std::vector<std::vector<Sent>> found{size_t(rows)};
        std::vector<std::vector<Open>> unplaced{size_t(rows)};
        const bool most = dense(w, rows);
        bool inside = true;
        if (scratch.cells.size() < size_t(team)) scratch.cells.resize(size_t(team));
        for (int t = 0; t < team; t++) scratch.cells[size_t(t)].reserve(w.ways.back().begin + w.ways.back().size);
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : inside)
        {
            Cells &cells = scratch.cells[size_t(here())];
#pragma omp for schedule(dynamic)
            for (int64_t row = 0; row < rows; row++) {
                const int64_t first = row * w.numel;
                inside = of_row(w, row, most, weight + first, live ? live + first : nullptr, cells, found[size_t(row)], unplaced[size_t(row)]) && inside;
            }
        }
        if (!inside) astray(scratch);
        for (auto &own : found)
            for (Sent &s : own) sent.push_back(std::move(s));
        for (auto &own : unplaced)
            for (Open &o : own) opened.push_back(std::move(o));
    }

    // Whether nearly all places are gone to. What has no rows of its own has places of every row.
    static bool dense(const Winners &w, int64_t rows) {
        int64_t apart = 0;
        for (const Way &way : w.ways) apart += way.rows ? way.size : rows * way.size;
        return 4 * w.numel >= apart;
    }

    template <class T> void one_row(Scratch &scratch, const Winners &w, const T *weight, const T *live, int threads) {
        if (scratch.cells.size() < size_t(threads)) scratch.cells.resize(size_t(threads));
        const int64_t places = w.ways.back().begin + w.ways.back().size;
        for (int t = 0; t < threads; t++) scratch.cells[size_t(t)].reserve(places);
        std::vector<std::vector<Sent>> found{size_t(threads)};
        std::vector<std::vector<Open>> left(size_t(threads), std::vector<Open>(w.ways.size()));
        bool inside = true;
#pragma omp parallel num_threads(threads) reduction(&& : inside)
        {
#pragma omp for schedule(static)
            for (int t = 0; t < threads; t++)
                inside = add_up(w, 0, weight, live, w.numel * t / threads, w.numel * (t + 1) / threads, scratch.cells[size_t(t)], nullptr, left[size_t(t)]) && inside;
#pragma omp for schedule(static)
            for (int t = 0; t < threads; t++)
                for (size_t n = 0; n < w.ways.size(); n++) {
                    const Way &way = w.ways[n];
                    const int64_t first = way.size * t / threads, last = way.size * (t + 1) / threads;
                    for (int other = 1; other < threads; other++) scratch.cells[0].take_over(scratch.cells[size_t(other)], way.begin + first, way.begin + last);
                    Sent sent = scratch.cells[0].gathered(n, 0, way.begin, first, last);
                    if (!sent.units.empty()) found[size_t(t)].push_back(std::move(sent));
                }
        }
        if (!inside) astray(scratch);
        for (auto &own : found)
            for (Sent &s : own) sent.push_back(std::move(s));
        for (auto &own : left) keep_open(own, 0, opened);
    }

    template <class T> bool of_row(const Winners &w, int64_t row, bool most, const T *weight, const T *live, Cells &cells, std::vector<Sent> &found, std::vector<Open> &unplaced) {
        const size_t count = w.ways.size();
        std::vector<Places> touched = most ? std::vector<Places>() : cells.noting(w.ways);
        std::vector<Open> left(count);
        const bool inside = add_up(w, row, weight, live, 0, w.numel, cells, most ? nullptr : touched.data(), left);
        for (size_t n = 0; n < count; n++) {
            const Way &way = w.ways[n];
            Sent sent = most ? cells.gathered(n, row, way.begin, 0, way.size) : cells.gathered(touched[n], n, row, way.begin);
            if (!sent.units.empty()) found.push_back(std::move(sent));
        }
        keep_open(left, row, unplaced);
        return inside;
    }

    static void keep_open(std::vector<Open> &left, int64_t row, std::vector<Open> &kept) {
        for (size_t n = 0; n < left.size(); n++) {
            if (left[n].from.empty()) continue;
            left[n].ordinal = n, left[n].row = row;
            kept.push_back(std::move(left[n]));
        }
    }

    // Adds up what the scalars of a row from `begin` to `end` send; false where a place is out of a way's target.
    template <class T> static bool add_up(const Winners &w, int64_t row, const T *weight, const T *live, int64_t begin, int64_t end, Cells &cells, Places *touched, std::vector<Open> &left) {
        const size_t count = w.ways.size();
        std::vector<int64_t> base(count), along(count);
        const auto note = [&](size_t n) { return touched ? &touched[n] : nullptr; };
        bool inside = true;
        const bool looks = w.ordinal || w.choice || !w.ways[0].strided;
        for (int64_t x = begin; x < end;) {  // a run, along which every way and plane goes on by one step
            int64_t run = end - x, raw = 0, choice = 0;
            const auto shorter = [&](std::pair<int64_t, int64_t> at) {
                run = std::min(run, at.second);
                return at.first;
            };
            for (size_t n = 0; n < count; n++) {
                const Way &way = w.ways[n];
                if (!way.strided || !way.size) continue;  // nobody goes to a result without scalars
                base[n] = way.offset + shorter(way.axes.at(x + (way.split ? row * w.numel : 0)));
                along[n] = way.axes.along();
            }
            if (w.raw) raw = row * w.raw.row + shorter(w.raw.axes.at(x));
            if (w.choice) choice = row * w.choice.row + shorter(w.choice.axes.at(x));
            run = std::max<int64_t>(run, 1);  // a way that nobody goes may see fewer scalars
            const T *here = live ? live + x : nullptr;
            if (!looks) {
                const auto by = [&](auto moved) { return by_one(w.ways[0], weight + x, here, base[0], along[0], run, moved, cells, note(0)); };
                inside = moving(w, raw, by) && inside;
            } else {
                for (int64_t i = 0; i < run; i++) {
                    if (!((here ? here[i] : weight[x + i]) > 0)) continue;
                    int64_t stored = w.raw ? std::max<int64_t>(w.raw(raw + i * w.raw.axes.along()), 0) : 0;
                    size_t n = 0;
                    if (w.ordinal)
                        n = size_t(w.ordinal[stored]), stored = w.local[stored];
                    else if (w.choice)
                        n = size_t(w.choice(choice + i * w.choice.axes.along()));
                    const Way &way = w.ways[n];
                    if (way.strided) {
                        inside = cells.add(way.begin, way.size, way.placed(base[n] + i * along[n] + way.moved(stored)), 1.0, double(weight[x + i]), note(n)) && inside;
                    } else {
                        left[n].from.push_back(x + i);
                        left[n].stored.push_back(stored);
                        left[n].weight.push_back(double(weight[x + i]));
                    }
                }
            }
            x += run;
        }
        return inside;
    }

    // Runs a loop with how far what is stored moves it, in variables of its own.
    template <class Loop> static bool moving(const Winners &w, int64_t raw, Loop loop) {
        const Way &way = w.ways[0];
        if (!w.raw || (!way.table && !way.step)) return loop([](int64_t) { return int64_t(0); });
        const int64_t step = w.raw.axes.along(), by = way.step, *table = way.table;
        const auto of = [&](auto *stored) {
            if (table) return loop([=](int64_t i) { return table[std::max<int64_t>(stored[i * step], 0)]; });
            return loop([=](int64_t i) { return by * std::max<int64_t>(stored[i * step], 0); });
        };
        switch (w.raw.width) {
        case 1: return of(reinterpret_cast<const uint8_t *>(w.raw.data) + raw);
        case 2: return of(reinterpret_cast<const int16_t *>(w.raw.data) + raw);
        default: return of(reinterpret_cast<const int32_t *>(w.raw.data) + raw);
        }
    }

    template <class T, class Moved>
    static bool by_one(const Way &way, const T *weight, const T *live, int64_t base, int64_t along, int64_t run, Moved moved, Cells &cells, Places *touched) {
        const int64_t begin = way.begin, size = way.size;
        const T *mark = live ? live : weight;
        bool inside = true;
        for (int64_t first = 0; first < run; first += BLOCK) {
            const int64_t last = std::min(first + BLOCK, run);
            if (!any_live(mark + first, last - first)) continue;
            for (int64_t i = first; i < last; i++)
                if (mark[i] > 0) inside = cells.add(begin, size, way.placed(base + i * along + moved(i)), 1.0, double(weight[i]), touched) && inside;
        }
        return inside;
    }

    // Whole rows of an embedding are dead: looking at many scalars at once costs little where they are not.
    template <class T> static bool any_live(const T *mark, int64_t n) {
        bool any = false;
        for (int64_t i = 0; i < n; i++) any |= mark[i] > 0;
        return any;
    }
};

}  // namespace gradtrace::rows
