#include "product/product.hpp"

#include <atomic>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "product/choose.hpp"
#include "product/lost.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// --- threads ----------------------------------------------------------------------------------------------

struct Team {
    std::atomic<int64_t> next[2] = {{0}, {0}};
};

// One thread of a team that goes through the same phases together.
struct Member {
    Team &team;
    int id, size;
    int turn = 0;

    // Calls f(task) for every task, each on the thread that is free, and waits for all.
    template <class F> void share(int64_t tasks, F &&f) {
        if (size == 1) {
            for (int64_t task = 0; task < tasks; task++) f(task);
            return;
        }
        for (int64_t task; (task = team.next[turn].fetch_add(1, std::memory_order_relaxed)) < tasks;) f(task);
        if (id == 0) team.next[turn ^ 1] = 0;  // nobody looks at it before the barrier
#ifdef _OPENMP
#pragma omp barrier
#endif
        turn ^= 1;
    }
};

// --- one product of a batch -------------------------------------------------------------------------------

// out[p·n + v] = max_k rows[p,k]·columns[v,k], or out[v·n + p] if swapped: rows are taken one by one, columns in vectors.
template <class T> struct Job {
    Side<T> rows, columns;
    int64_t k;
    T *out;
    int32_t *arg;
    int64_t n;
    Plan plan;
    int64_t before;  // k's that `out` has seen already
    int16_t *short_arg;
};

constexpr int64_t PANEL_BYTES = 24 << 20;    // of packed columns at a time
constexpr int64_t STRIPE_BYTES = 4 << 20;    // of packed rows at a time
constexpr int64_t STRIPE_ROWS = 8192;        // and of rows that need no packing

template <class T> constexpr int64_t block_bytes = sizeof(T) * LANES<T>;  // per k

// How a job is cut: chunks of k, panels of columns, stripes of rows.
template <class T> struct Cuts {
    int64_t depth, padded, panel_blocks, stripe;
    bool in_place;  // the rows can be read where they are

    Cuts(const Job<T> &job, bool packed) {
        depth = chunk_depth(job.k);
        padded = padded_to(depth, 64);
        const int64_t all = cut(job.columns.rows, LANES<T>);
        panel_blocks = packed ? all : most(1, least(all, PANEL_BYTES / (block_bytes<T> * most(depth, 1))));
        in_place = job.rows.positive && (job.rows.k_stride == 1 || job.k <= 1);
        const int64_t stripe_limit = in_place ? STRIPE_ROWS : most(ROWS, STRIPE_BYTES / static_cast<int64_t>(sizeof(T)) / most(padded, 1));
        stripe = least(padded_to(job.rows.rows, ROWS), padded_to(stripe_limit, ROWS));
    }
};

template <class T> struct Outcome {
    T max = 0, min = std::numeric_limits<T>::infinity();
    bool nan = false;   // a NaN in an operand
    bool lost = false;  // an output is denormal
    bool zero = false;  // an output is zero although neither its row nor its column is
    char pad[64];       // threads write side by side
};

template <class T> struct Work {
    Panel<T> panel;
    T *packed_rows;
    RowFacts<T> *facts;
    uint8_t *row_alive;   // per row: not all zero
    T *column_limit;      // per column: outputs below this are suspicious; 0 where the column is all zero
    T *score;             // per thread: how strong each k looks
    uint16_t *list;       // per thread: survivors
    Tile<T> *tile;        // per thread
    Outcome<T> *outcome;  // per thread
    size_t bytes;

    Work(const Job<T> &job, const Cuts<T> &cuts, int threads, bool pack_columns, char *memory) {
        Carver carve(memory);
        const int64_t blocks = cuts.panel_blocks, all = cut(job.columns.rows, LANES<T>);
        panel = {cuts.depth, cuts.padded, nullptr, nullptr, nullptr, nullptr, nullptr, job.plan.unit};
        if (pack_columns) panel.w = carve.take<T>(blocks * cuts.depth * LANES<T>);
        if (pack_columns && job.plan.pruned) {
            panel.bound = carve.take<T>(blocks * cuts.padded);
            panel.scale = carve.take<T>(blocks * LANES<T>);
            panel.dead = carve.take<T>(blocks * LANES<T>);
        }
        packed_rows = cuts.in_place ? nullptr : carve.take<T>(cuts.stripe * cuts.padded);
        facts = carve.take<RowFacts<T>>(cuts.stripe);
        row_alive = carve.take<uint8_t>(job.rows.rows);
        column_limit = carve.take<T>(all * LANES<T>);
        score = carve.take<T>(threads * cuts.padded);
        list = carve.take<uint16_t>(threads * (cuts.padded + 64));
        tile = carve.take<Tile<T>>(threads);
        outcome = carve.take<Outcome<T>>(threads);
        bytes = carve.used();
    }
};

// |w| of one job, packed once: all blocks of one chunk after the other.
template <class T> struct Packed {
    Panel<T> chunk(int64_t c) const {
        Panel<T> out = first;
        out.w += c * blocks * first.depth * LANES<T>;
        out.bound += c * blocks * first.padded;
        out.scale += c * blocks * LANES<T>;
        out.dead += c * blocks * LANES<T>;
        out.score += c * first.padded;
        return out;
    }
    int64_t blocks;
    Panel<T> first;
    T *column_limit;
    bool nan;
};

template <class T> class Run {
  public:
    Run(const Job<T> &job, const Cuts<T> &cuts, const Work<T> &work, const Packed<T> *packed, Member &member)
        : job_(job), cuts_(cuts), work_(work), packed_(packed), member_(member), panel_(work.panel),
          tile_(work.tile[member.id]), outcome_(work.outcome[member.id]) {
        outcome_ = Outcome<T>{};
        panel_.score = work.score + member.id * cuts.padded;
    }

    void all() {
        const int64_t blocks = cut(job_.columns.rows, LANES<T>);
        member_.share(1, [&](int64_t) {
            const auto size = static_cast<size_t>(blocks * LANES<T>) * sizeof(T);
            std::memset(work_.row_alive, 0, static_cast<size_t>(job_.rows.rows));
            if (packed_) std::memcpy(work_.column_limit, packed_->column_limit, size);
            else std::memset(static_cast<void *>(work_.column_limit), 0, size);
        });
        if (packed_) outcome_.nan = packed_->nan;
        for (int64_t b = 0; b < blocks; b += cuts_.panel_blocks)
            for (int64_t k = 0; k < most(job_.k, 1); k += most(cuts_.depth, 1))
                panel(b, least(cuts_.panel_blocks, blocks - b), k);
    }

  private:
    void panel(int64_t first_block, int64_t blocks, int64_t k) {
        depth_ = least(cuts_.depth, job_.k - k);
        if (packed_) {
            panel_ = packed_->chunk(k / most(cuts_.depth, 1));
            panel_.depth = depth_;
        } else {
            panel_.depth = depth_;
            member_.share(blocks, [&](int64_t slot) {
                outcome_.nan |= pack_block(job_.columns, first_block + slot, slot, k, panel_, job_.plan.pruned, work_.column_limit);
            });
            if (job_.plan.pruned) find_score(panel_, blocks);
        }
        for (int64_t r = 0; r < job_.rows.rows; r += cuts_.stripe) {
            const int64_t rows = least(cuts_.stripe, job_.rows.rows - r);
            member_.share(cut(rows, ROWS), [&](int64_t g) { prepare_rows(r, g * ROWS, least(ROWS, rows - g * ROWS), k); });
            tiles(first_block, blocks, r, rows, k);
        }
    }

    const T *row(int64_t stripe, int64_t r, int64_t k) const {
        return cuts_.in_place ? job_.rows.data + (stripe + r) * job_.rows.row_stride + k : work_.packed_rows + r * cuts_.padded;
    }
    int64_t row_stride() const { return cuts_.in_place ? job_.rows.row_stride : cuts_.padded; }

    void prepare_rows(int64_t stripe, int64_t from, int64_t count, int64_t k) {
        const Side<T> &side = job_.rows;
        if (!cuts_.in_place)
            copy_absolute(side.data + (stripe + from) * side.row_stride + k * side.k_stride, side.row_stride, side.k_stride, count,
                          depth_, work_.packed_rows + from * cuts_.padded, cuts_.padded);
        for (int64_t r = from; r < from + count; r++) {
            RowFacts<T> &facts = work_.facts[r];
            if (job_.plan.pruned)
                find_seeds(row(stripe, r, k), panel_.score, depth_, facts);
            else
                sum_row(row(stripe, r, k), depth_, facts);
            if (facts.sum != 0) work_.row_alive[stripe + r] = 1;
            outcome_.nan |= facts.sum != facts.sum;
        }
    }

    void tiles(int64_t first_block, int64_t blocks, int64_t stripe, int64_t rows, int64_t k) {
        const int64_t groups = cut(rows, ROWS);
        const int64_t splits = member_.size == 1 ? 1 : least(groups, cut(8 * member_.size, blocks));
        const int64_t per_split = cut(groups, splits);
        member_.share(blocks * splits, [&](int64_t task) {
            const int64_t block = task / splits, from = task % splits * per_split;
            strip(first_block, block, stripe, from * ROWS, least((from + per_split) * ROWS, rows), k);
        });
    }

    // Rows [from, to) of a stripe by one block.
    void strip(int64_t first_block, int64_t block, int64_t stripe, int64_t from, int64_t to, int64_t k) {
        int64_t worked = 0, rows_done = 0;
        bool pruned = job_.plan.pruned;
        for (int64_t r = from; r < to; r += ROWS) {
            const int rows = static_cast<int>(least(ROWS, to - r));
            fetch(first_block + block, stripe + r, rows, job_.before + k == 0);
            int row_in_tile = 0;
            for (; pruned && row_in_tile < rows; row_in_tile++) {
                worked += prune(block, stripe, r + row_in_tile, row_in_tile, k);
                pruned = ++rows_done < PROBATION || worked < rows_done * tolerable(depth_);
            }
            if (row_in_tile < rows)
                direct_tile(row(stripe, r, k), row_stride(), rows, panel_.block(block), depth_, static_cast<int32_t>(job_.before + k),
                            job_.columns.rows - (first_block + block) * LANES<T>, tile_, row_in_tile);
            if (k + depth_ == job_.k) judge(first_block + block, stripe + r, rows);
            flush(first_block + block, stripe + r, rows);
        }
    }

    int prune(int64_t block, int64_t stripe, int64_t r, int row_in_tile, int64_t k) {
        const RowFacts<T> &facts = work_.facts[r];
        if (facts.sum == 0) return 0;
        return pruned_row(row(stripe, r, k), row(stripe, r, k) + row_stride(), facts, panel_.block(block), panel_.bounds(block), depth_, static_cast<int32_t>(job_.before + k),
                          tile_.best[row_in_tile], tile_.arg[row_in_tile], work_.list + member_.id * (cuts_.padded + 64));
    }

    void fetch(int64_t block, int64_t first_row, int rows, bool fresh) {
        for (int r = 0; r < rows; r++)
            for (int lane = 0; lane < LANES<T>; lane++) tile_.best[r][lane] = 0, tile_.arg[r][lane] = -1;
        if (fresh) return;
        const int64_t column = block * LANES<T>, columns = least(LANES<T>, job_.columns.rows - column);
        const int64_t at = first_row * job_.n + column;
        if (!job_.plan.swapped) {
            for (int r = 0; r < rows; r++) {
                std::memcpy(tile_.best[r], job_.out + at + r * job_.n, static_cast<size_t>(columns) * sizeof(T));
                if (job_.arg) std::memcpy(tile_.arg[r], job_.arg + at + r * job_.n, static_cast<size_t>(columns) * sizeof(int32_t));
                if (job_.short_arg)
                    for (int64_t c = 0; c < columns; c++) tile_.arg[r][c] = job_.short_arg[at + r * job_.n + c];
            }
            return;
        }
        for (int64_t c = 0; c < columns; c++) {
            const int64_t line = first_row + job_.columns.place(column + c) * job_.n;
            for (int r = 0; r < rows; r++) {
                tile_.best[r][c] = job_.out[line + r];
                if (job_.arg) tile_.arg[r][c] = job_.arg[line + r];
                if (job_.short_arg) tile_.arg[r][c] = job_.short_arg[line + r];
            }
        }
    }

    void flush(int64_t block, int64_t first_row, int rows) {
        const int64_t column = block * LANES<T>, columns = least(LANES<T>, job_.columns.rows - column);
        const int64_t at = first_row * job_.n + column;
        if (!job_.plan.swapped) {
            for (int r = 0; r < rows; r++) {
                std::memcpy(job_.out + at + r * job_.n, tile_.best[r], static_cast<size_t>(columns) * sizeof(T));
                if (job_.arg) std::memcpy(job_.arg + at + r * job_.n, tile_.arg[r], static_cast<size_t>(columns) * sizeof(int32_t));
                if (job_.short_arg)
                    for (int64_t c = 0; c < columns; c++) job_.short_arg[at + r * job_.n + c] = static_cast<int16_t>(tile_.arg[r][c]);
            }
            return;
        }
        T best[LANES<T> * ROWS];
        int32_t arg[LANES<T> * ROWS];
        copy_transposed(tile_.best[0], LANES<T>, columns, rows, best, ROWS);
        if (job_.arg || job_.short_arg) copy_transposed(tile_.arg[0], LANES<T>, columns, rows, arg, ROWS);
        for (int64_t c = 0; c < columns; c++) {
            const int64_t line = first_row + job_.columns.place(column + c) * job_.n;
            std::memcpy(job_.out + line, best + c * ROWS, static_cast<size_t>(rows) * sizeof(T));
            if (job_.arg) std::memcpy(job_.arg + line, arg + c * ROWS, static_cast<size_t>(rows) * sizeof(int32_t));
            if (job_.short_arg)
                for (int r = 0; r < rows; r++) job_.short_arg[line + r] = static_cast<int16_t>(arg[c * ROWS + r]);
        }
    }

    // Takes the final values of a tile into account. Padding columns are zero and never suspicious.
    void judge(int64_t block, int64_t first_row, int rows) {
        using S = Simd<T>;
        auto max = S::zero(), min = S::set(std::numeric_limits<T>::infinity());
        const auto nothing = min, zero = max;
        for (int r = 0; r < rows; r++) {
            uint32_t small = 0, none = 0;
            for (int v = 0; v < VECTORS; v++) {
                const auto x = S::load(tile_.best[r] + v * S::lanes);
                const auto limit = S::load(work_.column_limit + block * LANES<T> + v * S::lanes);
                const auto is_zero = S::equal(x, zero);
                max = S::larger(x, max);
                min = S::smaller(min, S::blend(is_zero, nothing, x));
                const uint32_t below = S::bits(S::greater(limit, x)), empty = S::bits(is_zero);
                small |= below & ~empty;
                none |= below & empty;
            }
            outcome_.lost |= small != 0;
            outcome_.zero |= none != 0 && work_.row_alive[first_row + r];
        }
        const T largest = S::max_of(max), smallest = S::min_of(min);
        if (largest > outcome_.max) outcome_.max = largest;
        if (smallest < outcome_.min) outcome_.min = smallest;
    }

    const Job<T> &job_;
    const Cuts<T> &cuts_;
    const Work<T> &work_;
    const Packed<T> *packed_;
    Member &member_;
    Panel<T> panel_;
    Tile<T> &tile_;
    Outcome<T> &outcome_;
    int64_t depth_ = 0;
};

// --- a batch ----------------------------------------------------------------------------------------------

constexpr size_t KEPT_BYTES = size_t(32) << 20;  // of scratch memory between calls

template <class T> Job<T> job_of(const Product<T> &p, int64_t b, Plan plan) {
    Side<T> a = side_a(p, b), w = side_w(p, b);
    a.order = plan.order;
    T *out = p.out + b * p.m * p.n;
    int32_t *arg = p.arg ? p.arg + b * p.m * p.n : nullptr;
    int16_t *short_arg = p.short_arg ? p.short_arg + b * p.m * p.n : nullptr;
    if (plan.swapped) return {w, a, p.k, out, arg, p.n, plan, p.before, short_arg};
    return {a, w, p.k, out, arg, p.n, plan, p.before, short_arg};
}

template <class T> void take(const Product<T> &p, int64_t b, const Outcome<T> &part, Summary &summary) {
    if (part.max > summary.max) summary.max = part.max;
    if (part.min < summary.min) summary.min = part.min;
    if (part.nan) summary.flags |= NAN_SEEN;
    if (part.lost) summary.flags |= LOST;
    if (part.zero && !(summary.flags & LOST) && zero_was_lost(p, b)) summary.flags |= LOST;
}

// Every thread takes whole products of the batch.
template <class T> Summary run_apart(const Product<T> &p, const Packed<T> *packed, Plan plan, int threads) {
    const Job<T> first = job_of(p, 0, plan);
    const Cuts<T> cuts(first, packed != nullptr);
    const size_t bytes = Work<T>(first, cuts, 1, !packed, nullptr).bytes;
    char *memory = scratch().get<char>(static_cast<int64_t>(bytes) * threads);
    Team team;
    Summary summary{0, std::numeric_limits<double>::infinity(), 0};
    const auto body = [&](int id) {
        const Work<T> work(first, cuts, 1, !packed, memory + bytes * static_cast<size_t>(id));
        Member alone{team, 0, 1};
        for (int64_t b; (b = team.next[0].fetch_add(1)) < p.batch;) {
            const Job<T> job = job_of(p, b, plan);
            Run<T>(job, cuts, work, packed ? packed + b : nullptr, alone).all();
#ifdef _OPENMP
#pragma omp critical(gradtrace_summary)
#endif
            take(p, b, work.outcome[0], summary);
        }
    };
    if (threads == 1) {
        body(0);
    } else {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
        body(omp_get_thread_num());
#endif
    }
    return summary;
}

// All threads work on one product after the other.
template <class T> Summary run_together(const Product<T> &p, const Packed<T> *packed, Plan plan, int threads) {
    const Job<T> first = job_of(p, 0, plan);
    const Cuts<T> cuts(first, packed != nullptr);
    const size_t bytes = Work<T>(first, cuts, threads, !packed, nullptr).bytes;
    const Work<T> work(first, cuts, threads, !packed, scratch().get<char>(static_cast<int64_t>(bytes)));
    Summary summary{0, std::numeric_limits<double>::infinity(), 0};
    for (int64_t b = 0; b < p.batch; b++) {
        const Job<T> job = job_of(p, b, plan);
        Team team;
        int size = 1;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
        {
            if (omp_get_thread_num() == 0) size = omp_get_num_threads();
            Member member{team, omp_get_thread_num(), omp_get_num_threads()};
            Run<T>(job, cuts, work, packed ? packed + b : nullptr, member).all();
        }
#else
        Member member{team, 0, 1};
        Run<T>(job, cuts, work, packed ? packed + b : nullptr, member).all();
#endif
        for (int id = 0; id < size; id++) take(p, b, work.outcome[id], summary);
    }
    return summary;
}

template <class T> struct PreparedBatch final : Prepared {
    Scratch memory, index;
    Packed<T> *packed = nullptr;  // one per product of the batch
};

template <class T> Packed<T> lay_out(int64_t n, int64_t k, Carver &carve) {
    const int64_t blocks = cut(n, LANES<T>), depth = chunk_depth(k), chunks = k ? cut(k, depth) : 1, padded = padded_to(depth, 64);
    Packed<T> out{};
    out.blocks = blocks;
    out.first.depth = depth, out.first.padded = padded;
    out.first.w = carve.take<T>(chunks * blocks * depth * LANES<T>);
    out.first.bound = carve.take<T>(chunks * blocks * padded);
    out.first.scale = carve.take<T>(chunks * blocks * LANES<T>);
    out.first.dead = carve.take<T>(chunks * blocks * LANES<T>);
    out.first.score = carve.take<T>(chunks * padded);
    out.column_limit = carve.take<T>(blocks * LANES<T>);
    return out;
}

template <class T> void pack(const Side<T> &side, int64_t k, Packed<T> &out) {
    for (int64_t lane = 0; lane < out.blocks * LANES<T>; lane++) out.column_limit[lane] = 0;
    for (int64_t c = 0; c * out.first.depth < k; c++) {
        Panel<T> panel = out.chunk(c);
        const int64_t first = c * out.first.depth;
        panel.depth = least(panel.depth, k - first);
        for (int64_t b = 0; b < out.blocks; b++)
            out.nan |= pack_block(side, b, b, first, panel, true, out.column_limit);
        find_score(panel, out.blocks);
    }
}

template <class T> Prepared *prepare_in(Prepared *again, int64_t batch, int64_t n, int64_t k, const Operand<T> &w) {
    auto *out = again ? static_cast<PreparedBatch<T> *>(again) : new PreparedBatch<T>;
    Carver count(nullptr);
    for (int64_t b = 0; b < batch; b++) lay_out<T>(n, k, count);
    Carver carve(out->memory.template get<char>(static_cast<int64_t>(count.used())));
    out->packed = out->index.template get<Packed<T>>(batch);
    for (int64_t b = 0; b < batch; b++) {
        out->packed[b] = lay_out<T>(n, k, carve);
        pack(Side<T>{w.data + b * w.batch_stride, w.row_stride, w.k_stride, n, false}, k, out->packed[b]);
    }
    return out;
}

template <class T> Prepared *prepare(int64_t batch, int64_t n, int64_t k, const Operand<T> &w) {
    return prepare_in(nullptr, batch, n, k, w);
}

template <class T> Summary product(const Product<T> &p, const Prepared *prepared, int threads, Variant variant) {
    if (p.batch <= 0 || p.m <= 0 || p.n <= 0) return {0, std::numeric_limits<double>::infinity(), 0};
    const Plan plan = choose(p, prepared != nullptr, variant);
    const Packed<T> *packed = prepared && !plan.swapped ? static_cast<const PreparedBatch<T> *>(prepared)->packed : nullptr;
    threads = threads_for(p, threads);
    const bool apart = threads == 1 || p.batch >= 2 * threads;
    const Summary out = apart ? run_apart(p, packed, plan, threads) : run_together(p, packed, plan, threads);
    scratch().trim(KEPT_BYTES);
    return out;
}

}  // namespace

template <class T> Summary max_product(const Product<T> &p, const Prepared *prepared, Variant variant) {
    return product(p, prepared, 1, variant);
}
template Summary max_product(const Product<float> &, const Prepared *, Variant);
template Summary max_product(const Product<double> &, const Prepared *, Variant);

template <class T> Prepared *prepare_product(int64_t n, int64_t k, const Operand<T> &w, Prepared *again) {
    return prepare_in(again, 1, n, k, w);
}
template Prepared *prepare_product(int64_t, int64_t, const Operand<float> &, Prepared *);
template Prepared *prepare_product(int64_t, int64_t, const Operand<double> &, Prepared *);

extern const ProductTable product_table = {product<float>, product<double>, prepare<float>, prepare<double>};

}  // namespace gradtrace::GRADTRACE_ISA
