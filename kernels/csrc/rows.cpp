// See decoder.h: rows of text in flight, their pasts, and the step that advances them.
#include <sys/mman.h>

#include <cstring>
#include <stdexcept>

#include "model.h"
#include "sampling.h"

#if defined(__SANITIZE_ADDRESS__)  // a page that nobody owns must not be touched: see kernels/sanitize.py
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes)
#endif

namespace lavila {
namespace {

// Pages of the self-attention cache, counted: each holds 16 tokens of one past, of all layers and heads.
class Pages {
  public:
    explicit Pages(int64_t bytes) : used_(size_t(bytes)), bytes_(size_t(round_up(bytes, 4096))) {}
    ~Pages() {
        for (void* slab : slabs_) {
            ASAN_UNPOISON_MEMORY_REGION(slab, bytes_ * kSlab);
            munmap(slab, bytes_ * kSlab);
        }
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    int take() {
        if (free_.empty()) grow();
        const int page = free_.back();
        free_.pop_back();
        owners_[size_t(page)] = 1;
        ASAN_UNPOISON_MEMORY_REGION(data(page), used_);
        return page;
    }
    void share(int page) { ++owners_[size_t(page)]; }
    void drop(int page) {
        if (--owners_[size_t(page)]) return;
        free_.push_back(page);
        ASAN_POISON_MEMORY_REGION(data(page), bytes_);
    }
    bool shared(int page) const { return owners_[size_t(page)] > 1; }
    char* data(int page) const { return slabs_[size_t(page / kSlab)] + size_t(page % kSlab) * bytes_; }

  private:
    static constexpr int kSlab = 16;

    void grow() {
        void* slab = mmap(nullptr, bytes_ * kSlab, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (slab == MAP_FAILED) throw std::bad_alloc();
        madvise(slab, bytes_ * kSlab, MADV_HUGEPAGE);  // only a hint
        ASAN_POISON_MEMORY_REGION(slab, bytes_ * kSlab);
        slabs_.push_back(static_cast<char*>(slab));
        owners_.resize(slabs_.size() * kSlab, 0);
        for (int i = kSlab; i-- > 0;) free_.push_back(int(slabs_.size() - 1) * kSlab + i);
    }

    size_t used_, bytes_;  // a page's, and from page to page
    std::vector<char*> slabs_;
    std::vector<int> owners_, free_;
};

constexpr int64_t kMostRows = 1 << 20;

struct Row {
    int64_t joined = 0;  // which of the clips that ever joined
    std::shared_ptr<const Clip> clip;
    std::vector<int> pages;
    int length = 0;    // tokens in the cache
    int64_t line = 0;  // of the logits
};

class Rows {
  public:
    explicit Rows(std::shared_ptr<const Model> model)
        : model_(std::move(model)), m_(*model_), pages_(page_bytes()) {}

    const std::vector<Row>& rows() const { return rows_; }
    const Model& model() const { return m_; }
    const float* logits() const { return logits_.data(); }

    void join(const std::vector<std::shared_ptr<const Clip>>& clips, int samples) {
        if (clips.empty() || samples < 1) throw std::runtime_error("join: no clips, or samples below 1");
        for (const auto& clip : clips)
            if (clip->model != m_.number) throw std::runtime_error("join: a clip of another narrator");
        if (int64_t(rows_.size()) + int64_t(clips.size()) * samples > kMostRows)
            throw std::runtime_error("join: more than " + std::to_string(kMostRows) + " rows");
        const int64_t first = rows_.empty() ? 0 : lines_;
        std::vector<Row> fresh(clips.size());
        for (size_t i = 0; i < clips.size(); ++i) fresh[i].joined = joined_++, fresh[i].clip = clips[i];
        const std::vector<int64_t> begin(clips.size(), m_.V - 1);
        forward(fresh, begin.data(), first);
        for (const Row& row : fresh)
            for (int i = 0; i < samples; ++i) {
                if (i) pages_.share(row.pages[0]);
                rows_.push_back(row);
            }
    }

    void step(const int64_t* tokens, int count) {
        if (count < 0 || size_t(count) != rows_.size()) throw std::runtime_error("step: not one token a row");
        if (!count) return;  // all rows have left
        for (int i = 0; i < count; ++i) {
            if (tokens[i] < 0 || tokens[i] >= m_.V) throw std::runtime_error("step: a token is not in the vocabulary");
            if (rows_[size_t(i)].length >= m_.positions) throw std::runtime_error("step: a row is full");
        }
        forward(rows_, tokens, 0);
    }

    void select(const int64_t* which, int count) {
        if (count < 0 || count > kMostRows) throw std::runtime_error("select: more rows than can be, or fewer");
        std::vector<Row> chosen;
        for (int i = 0; i < count; ++i) {
            if (which[i] < 0 || which[i] >= int64_t(rows_.size())) throw std::runtime_error("select: no such row");
            chosen.push_back(rows_[size_t(which[i])]);
        }
        for (const Row& row : chosen)
            for (int page : row.pages) pages_.share(page);
        for (const Row& row : rows_)
            for (int page : row.pages) pages_.drop(page);
        rows_.swap(chosen);
    }

  private:
    int64_t page_bytes() const {
        const int64_t head = m_.bytes ? PageShape<int8_t>(m_.size()).head() : PageShape<float>(m_.size()).head();
        return head * m_.heads * m_.layers;
    }

    // Every row gets room for one more token in a page of its own.
    void make_room(std::vector<Row>& rows) {
        std::vector<std::pair<int, int>> copies;
        for (Row& row : rows) {
            if (row.length % kPage == 0) {
                row.pages.push_back(pages_.take());
            } else if (pages_.shared(row.pages.back())) {
                const int page = pages_.take();
                copies.emplace_back(row.pages.back(), page);
                pages_.drop(row.pages.back());
                row.pages.back() = page;
            }
        }
        parallel(m_.pool, int64_t(copies.size()), [&](int64_t i) {
            std::memcpy(pages_.data(copies[size_t(i)].second), pages_.data(copies[size_t(i)].first),
                        size_t(page_bytes()));
        });
    }

    // Feeds a token to each row; their logits become the lines from `line` on.
    void forward(std::vector<Row>& rows, const int64_t* tokens, int64_t line) {
        make_room(rows);
        const int64_t N = int64_t(rows.size()), E = m_.E;
        x_.resize(size_t(N * E)), mixed_.resize(size_t(N * E)), wide_.resize(size_t(4 * N * E));
        normed_.resize(size_t(N * E));
        for (int64_t n = 0; n < N; ++n) {
            m_.words.read(tokens[n], m_.E, &x_[size_t(n * E)]);
            const float* place = &m_.places[size_t(rows[size_t(n)].length) * size_t(E)];
            for (int64_t i = 0; i < E; ++i) x_[size_t(n * E + i)] += place[i];
        }
        group(rows);
        for (int i = 0; i < m_.layers; ++i) block(rows, i);
        lines_ = line + N;
        if (logits_.size() < size_t(lines_ * m_.V)) logits_.resize(size_t(lines_ * m_.V));
        project(m_.last, m_.head, N, &logits_[size_t(line * m_.V)]);
        for (Row& row : rows) ++row.length, row.line = line++;
    }

    void block(const std::vector<Row>& rows, int i) {
        const Layer& l = m_.layer[size_t(i)];
        const int64_t N = int64_t(rows.size());
        if (l.cross) {
            project(l.see_norm, l.see_q, N, wide_.data());
            m_.bytes ? look<int8_t>(rows, i) : look<float>(rows, i);
            l.see_out.run(m_.pool, mixed_.data(), m_.E, N, x_.data(), m_.E, Act::none, true);
            project(l.see_mlp_norm, l.see_up, N, wide_.data(), Act::squared_relu);
            l.see_down.run(m_.pool, wide_.data(), 4 * m_.E, N, x_.data(), m_.E, Act::none, true);
        }
        project(l.norm, l.qkv, N, wide_.data());
        m_.bytes ? remember<int8_t>(rows, i) : remember<float>(rows, i);
        l.out.run(m_.pool, mixed_.data(), m_.E, N, x_.data(), m_.E, Act::none, true);
        project(l.mlp_norm, l.up, N, wide_.data(), Act::gelu_tanh);
        l.down.run(m_.pool, wide_.data(), 4 * m_.E, N, x_.data(), m_.E, Act::none, true);
    }

    // y = act(linear(norm(x))).
    void project(const Norm& norm, const Linear& linear, int64_t N, float* y, Act act = Act::none) {
        if (linear.int8()) {
            norm.run(m_.pool, x_.data(), m_.E, N, quantized_);
            linear.run(m_.pool, quantized_, y, linear.outputs(), act);
        } else {
            norm.run(m_.pool, x_.data(), m_.E, N, normed_.data(), m_.E);
            linear.run(m_.pool, normed_.data(), m_.E, N, y, linear.outputs(), act);
        }
    }

    // Cross-attention: queries in wide_ (N, E), result in mixed_. One task is one head of one clip, for all its rows.
    template <class T>
    void look(const std::vector<Row>& rows, int i) {
        const CrossShape<T> shape(m_.size(), m_.queries);
        parallel(m_.pool, int64_t(groups_.size()) * m_.heads, [&](int64_t task) {
            const auto& mine = groups_[size_t(task / m_.heads)];
            const Clip& clip = *rows[size_t(mine[0])].clip;
            const int64_t h = task % m_.heads;
            cross_attention(shape, clip.memory.data() + clip.at[size_t(i)] + h * shape.head(),
                            wide_.data() + h * m_.size(), mixed_.data() + h * m_.size(), m_.E, mine.data(),
                            int(mine.size()));
        });
    }

    // Self-attention: queries, keys and values in wide_ (N, 3E), result in mixed_. One task is some heads of one row.
    template <class T>
    void remember(const std::vector<Row>& rows, int i) {
        constexpr int kHeads = 4;
        const PageShape<T> shape(m_.size());
        const int64_t parts = (m_.heads + kHeads - 1) / kHeads;
        parallel(m_.pool, int64_t(rows.size()) * parts, [&](int64_t task) {
            const int64_t n = task / parts;
            const Row& row = rows[size_t(n)];
            static thread_local std::vector<char*> pages;
            for (int h = int(task % parts) * kHeads, last = std::min(h + kHeads, m_.heads); h < last; ++h) {
                const int64_t at = (int64_t(i) * m_.heads + h) * shape.head();
                pages.clear();
                for (int page : row.pages) pages.push_back(pages_.data(page) + at);
                self_attention(shape, pages.data(), row.length, wide_.data() + n * 3 * m_.E + h * m_.size(), m_.E,
                               m_.scale(), h + 1 < m_.heads, mixed_.data() + n * m_.E + h * m_.size());
            }
        });
    }

    // The rows of each clip.
    void group(const std::vector<Row>& rows) {
        std::map<int64_t, size_t> place;
        groups_.clear();
        for (size_t n = 0; n < rows.size(); ++n) {
            const auto [at, fresh] = place.emplace(rows[n].joined, groups_.size());
            if (fresh) groups_.emplace_back();
            groups_[at->second].push_back(int(n));
        }
    }

    std::shared_ptr<const Model> model_;
    const Model& m_;
    Pages pages_;
    std::vector<Row> rows_;
    std::vector<std::vector<int>> groups_;
    int64_t joined_ = 0, lines_ = 0;
    Aligned<float> x_, mixed_, wide_, normed_;
    QuantRows quantized_;
    std::vector<float> logits_;  // (lines, V)
};

std::vector<int64_t> lines_of(const Rows& rows) {
    std::vector<int64_t> lines;
    for (const Row& row : rows.rows()) lines.push_back(row.line);
    return lines;
}

}  // namespace
}  // namespace lavila

struct lv_rows {
    lavila::Rows rows;
};

using lavila::code;

extern "C" {

lv_rows* lv_rows_new(lv_decoder* decoder) {
    return lavila::guarded([&] { return new lv_rows{lavila::Rows(decoder->model)}; });
}

void lv_rows_free(lv_rows* rows) { delete rows; }

int lv_rows_join(lv_rows* rows, lv_clip* const* clips, int count, int samples) {
    return code([&] {
        std::vector<std::shared_ptr<const lavila::Clip>> some;
        for (int i = 0; i < count; ++i) some.push_back(clips[i]->clip);
        rows->rows.join(some, samples);
    });
}

int lv_rows_step(lv_rows* rows, const int64_t* tokens, int count) {
    return code([&] { rows->rows.step(tokens, count); });
}

int lv_rows_select(lv_rows* rows, const int64_t* which, int count) {
    return code([&] { rows->rows.select(which, count); });
}

int lv_rows_count(const lv_rows* rows) { return int(rows->rows.rows().size()); }

void lv_rows_slots(const lv_rows* rows, int64_t* slots) {
    std::map<int64_t, int64_t> numbers;
    for (const auto& row : rows->rows.rows())
        *slots++ = numbers.emplace(row.joined, int64_t(numbers.size())).first->second;
}

int lv_rows_logits(const lv_rows* rows, float* out) {
    return code([&] {
        const int64_t V = rows->rows.model().V;
        for (int64_t line : lavila::lines_of(rows->rows)) {
            std::copy_n(rows->rows.logits() + line * V, V, out);
            out += V;
        }
    });
}

int lv_rows_logprobs(const lv_rows* rows, float* out) {
    return code([&] {
        const auto lines = lavila::lines_of(rows->rows);
        const auto& model = rows->rows.model();
        lavila::log_softmax(model.pool, rows->rows.logits(), model.V, lines.data(), int64_t(lines.size()), out);
    });
}

int lv_rows_sample(const lv_rows* rows, double temperature, int64_t top_k, double top_p, const double* u,
                   int64_t* tokens, float* logprob, float* entropy) {
    return code([&] {
        const auto lines = lavila::lines_of(rows->rows);
        const auto& model = rows->rows.model();
        lavila::require_warp(temperature, top_k, top_p);
        lavila::choose(model.pool, rows->rows.logits(), model.V, lines.data(), int64_t(lines.size()),
                       {temperature, top_k, top_p}, u, {tokens, logprob, entropy});
    });
}

}  // extern "C"
