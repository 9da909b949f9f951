// Tallies: how many scalars have each set of components.
#include <algorithm>
#include <vector>

#include "rows/rows.hpp"
#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t MOST_SETS = 65536;

// A hash table from bit sets to counts: open addressing, twice as many slots as sets.
class Table {
  public:
    // False where there are too many different sets.
    bool add(uint64_t bits, int64_t count, double strength) {
        size_t at = slot(bits);
        while (used[at] && entries[at].bits != bits) at = (at + 1) & (entries.size() - 1);
        if (!used[at]) {
            if (size == MOST_SETS) return false;
            used[at] = 1;
            entries[at] = {bits, 0, 0.0};
            size++;
        }
        entries[at].count += count;
        entries[at].strength += strength;
        if (2 * size > int64_t(entries.size())) grow();
        return true;
    }
    template <class F> void each(F f) const {
        for (size_t at = 0; at < entries.size(); at++)
            if (used[at]) f(entries[at]);
    }

  private:
    size_t slot(uint64_t bits) const { return (bits * 0x9e3779b97f4a7c15u) >> (64 - log_size); }
    void grow() {
        Table larger;
        larger.log_size = log_size + 1;
        larger.entries.resize(2 * entries.size());
        larger.used.resize(2 * used.size());
        each([&](const BitCount &e) { larger.add(e.bits, e.count, e.strength); });
        *this = std::move(larger);
    }
    int log_size = 6;
    int64_t size = 0;
    std::vector<BitCount> entries = std::vector<BitCount>(64);
    std::vector<uint8_t> used = std::vector<uint8_t>(64);
};

// Neighbours often have the same set, so a run of them is added at once. Of a scalar without a trace the set means nothing: it
// ends no run, so that no sum depends on it.
template <class T> bool count_range(const uint64_t *bits, const T *strength, int64_t begin, int64_t end, Table &table) {
    const auto dead = [strength](int64_t x) { return strength && !(strength[x] > 0); };
    for (int64_t x = begin; x < end;) {
        if (dead(x)) {
            x++;
            continue;
        }
        const uint64_t set = bits[x];
        int64_t count = 0;
        double total = 0;
        for (; x < end; x++) {
            if (dead(x)) continue;
            if (bits[x] != set) break;
            count++;
            total += strength ? double(strength[x]) : 0.0;
        }
        if (!table.add(set, count, total)) return false;
    }
    return true;
}

}  // namespace

template <class T> Counts tally(const uint64_t *bits, const T *strength, int64_t n, int threads) {
    const int parts = team(n, n, threads);
    std::vector<Table> tables(parts);
    std::vector<uint8_t> fit(parts);  // not vector<bool>, whose elements share bytes among threads
    share(parts, n, parts, [&](int64_t from, int64_t to) {
        for (int64_t t = from; t < to; t++)
            fit[t] = count_range(bits, strength, n * t / parts, n * (t + 1) / parts, tables[t]);
        return nothing_seen();
    });
    bool fits = std::all_of(fit.begin(), fit.end(), [](uint8_t one) { return one != 0; });
    for (int t = 1; t < parts && fits; t++)
        tables[t].each([&](const BitCount &e) { fits = fits && tables[0].add(e.bits, e.count, e.strength); });
    if (!fits) return std::nullopt;
    std::vector<BitCount> out;
    tables[0].each([&](const BitCount &e) { out.push_back(e); });
    return out;
}

template Counts tally(const uint64_t *, const float *, int64_t, int);
template Counts tally(const uint64_t *, const double *, int64_t, int);

}  // namespace gradtrace::GRADTRACE_ISA
