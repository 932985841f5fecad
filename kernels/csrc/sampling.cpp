// See sampling.h: lines are shared out among the threads, and rows that read the same line share its work.
#include "sampling.h"

#include <cmath>
#include <map>
#include <stdexcept>

#include "line.h"

namespace lavila {
namespace {

Scratch& scratch(int vocab) {
    static thread_local Scratch memory;
    memory.reserve(vocab);
    return memory;
}

using Reader = std::pair<int64_t, std::vector<int64_t>>;  // a line and the rows that read it

std::vector<Reader> by_line(const int64_t* source, int64_t rows) {
    std::map<int64_t, std::vector<int64_t>> lines;
    for (int64_t row = 0; row < rows; ++row) lines[source[row]].push_back(row);
    return {lines.begin(), lines.end()};
}

// Runs body(line, its rows, the line after that or null) for every line; a thread takes every threads-th.
template <class F>
void each_line(Pool& pool, const int64_t* source, int64_t rows, const F& body) {
    const auto lines = by_line(source, rows);
    const int count = int(lines.size()), threads = std::min(pool.threads(), count);
    const auto some = [&](int thread) {
        for (int i = thread; i < count; i += threads)
            body(lines[size_t(i)].first, lines[size_t(i)].second,
                 i + threads < count ? lines[size_t(i + threads)].first : -1);
    };
    if (threads > 1)
        pool.run([&](int thread) { some(thread); });
    else
        some(0);
}

}  // namespace

void require_warp(double temperature, int64_t top_k, double top_p) {
    const bool fits = temperature == 0 || (temperature >= 1e-6 && std::isfinite(temperature));
    if (!fits || top_k < 0 || !(top_p > 0 && top_p <= 1))
        throw std::runtime_error("choose: temperature, top_k or top_p outside their ranges");
}

void choose(Pool& pool, const float* logits, int vocab, const int64_t* source, int64_t rows, const Warp& warp,
            const double* u, const Drawn& out) {
    const bool greedy = warp.temperature == 0 || warp.top_k == 1;
    each_line(pool, source, rows, [&](int64_t number, const std::vector<int64_t>& mine, int64_t next) {
        Line line(logits + number * vocab, vocab, scratch(vocab));
        line.weigh(!greedy, greedy ? 1.f : float(1 / warp.temperature), next < 0 ? nullptr : logits + next * vocab);
        if (!line.finite()) {  // nothing can be chosen: scores that are no numbers say so
            for (int64_t row : mine) out.token[row] = 0, out.logprob[row] = out.entropy[row] = NAN;
            return;
        }
        if (!greedy) {
            if (warp.top_k) line.keep_top(warp.top_k);
            if (warp.top_p < 1) line.keep_nucleus(warp.top_p);
        }
        for (int64_t row : mine) {
            const int64_t token = greedy ? line.argmax() : line.draw(u[row]);
            out.token[row] = token;
            out.logprob[row] = float(double(line.shifted(token)) - line.log_total());
            out.entropy[row] = float(line.entropy());
        }
    });
}

void log_softmax(Pool& pool, const float* logits, int vocab, const int64_t* source, int64_t rows, float* out) {
    each_line(pool, source, rows, [&](int64_t number, const std::vector<int64_t>& mine, int64_t next) {
        Line line(logits + number * vocab, vocab, scratch(vocab));
        line.weigh(false, 1.f, next < 0 ? nullptr : logits + next * vocab);
        for (int64_t row : mine)
            if (line.finite())
                line.log_probabilities(out + row * vocab);
            else
                std::fill_n(out + row * vocab, vocab, NAN);
    });
}

}  // namespace lavila

extern "C" {
int lv_choose(lv_threads* threads, const float* logits, int vocab, const int64_t* source, int64_t rows,
              double temperature, int64_t top_k, double top_p, const double* u, int64_t* tokens, float* logprob,
              float* entropy) {
    return !lavila::guarded([&] {
        if (vocab < 1 || rows < 0) throw std::runtime_error("choose: no words, or less than no rows");
        lavila::require_warp(temperature, top_k, top_p);
        lavila::choose(threads->pool, logits, vocab, source, rows, {temperature, top_k, top_p}, u,
                       {tokens, logprob, entropy});
        return true;
    });
}

int lv_log_softmax(lv_threads* threads, const float* logits, int vocab, const int64_t* source, int64_t rows,
                   float* out) {
    return !lavila::guarded([&] {
        if (vocab < 1 || rows < 0) throw std::runtime_error("log_softmax: no words, or less than no rows");
        lavila::log_softmax(threads->pool, logits, vocab, source, rows, out);
        return true;
    });
}
}
