// One line of logits: its softmax, which words a warp keeps, and drawing from them without sorting the vocabulary. The
// weights stay in the cache; every pass over them is a few vector operations. For the nucleus, words too light to matter
// are dropped first; of the rest, a sample says between which two weights the border lies, one pass checks that it does,
// and only the words between go into bins.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "gemm.h"

namespace lavila {

constexpr int kBlock = 256;       // words whose weights are summed before the running sum
constexpr int kFew = 6000;        // words that go into bins without more ado
constexpr int kSampled = 1024;
constexpr int kShift = 17;        // a bin: sign, exponent and six bits of the mantissa
constexpr int kBins = (0x3f800000 >> kShift) + 1;

struct Doubles {  // a sum of vectors of floats, exact to double
#if defined(__AVX512F__)
    __m512d low = _mm512_setzero_pd(), high = low;
    void add(vf x) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
#else
    __m256d low = _mm256_setzero_pd(), high = low;
    void add(vf x) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    }
    double total() const {
        const __m256d s = _mm256_add_pd(low, high);
        const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
        return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
    }
#endif
};

// x where x ≥ least, else 0.
inline vf at_least(vf x, vf least) {
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_GE_OQ), x);
#else
    return _mm256_and_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ), x);
#endif
}

// Appends the lanes with least ≤ x < below; up to a whole vector is written.
inline float* append(float* to, vf x, vf least, vf below) {
#if defined(__AVX512F__)
    const Mask m = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x, least, _CMP_GE_OQ), x, below, _CMP_LT_OQ);
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(m, x));
    return to + __builtin_popcount(m);
#else
    alignas(32) float lanes[kLanes];
    store(lanes, x);
    const vf inside = _mm256_and_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ), _mm256_cmp_ps(x, below, _CMP_LT_OQ));
    const int m = _mm256_movemask_ps(inside);
    for (int i = 0; i < kLanes; ++i) {
        *to = lanes[i];
        to += m >> i & 1;
    }
    return to;
#endif
}

// e^x, and 0 where that would be no normal number.
inline vf weight_of(vf x) {
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(-87.3f), _CMP_GE_OQ), vexp(x));
#else
    return _mm256_and_ps(_mm256_cmp_ps(x, splat(-87.3f), _CMP_GE_OQ), vexp(x));
#endif
}

inline bool any_equal(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0;
#else
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0;
#endif
}

inline int bin_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return std::min(std::max(bits >> kShift, 0), kBins - 1);
}

inline float edge_of(int bin) {  // the smallest number in a bin
    const int32_t bits = bin << kShift;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

struct Scratch {  // of a thread
    Aligned<float> weights, some, fewer;
    std::vector<double> bins, before;  // before: cumulative weight, as far as it was needed
    void reserve(int vocab) {
        const size_t whole = size_t(round_up(vocab, kBlock)) + kBlock;
        weights.resize(whole);
        some.resize(whole);
        fewer.resize(whole);
        bins.resize(kBins);
    }
};

// One line of logits: its softmax, and what of it survives a warp.
class Line {
  public:
    Line(const float* logits, int vocab, Scratch& scratch)
        : logits_(logits),
          vocab_(vocab),
          blocks_((vocab + kBlock - 1) / kBlock),
          scratch_(scratch),
          w_(scratch.weights.data()) {
        scratch.before.assign(1, 0.);
        largest_ = most();
    }

    float shifted(int64_t word) const { return logits_[word] - largest_; }
    double log_total() const { return std::log(total_); }
    double entropy() const { return std::log(total_) - moment_ / total_; }
    // Whether every logit is a number, after `weigh`: the moment, which meets each, is none if one is not.
    bool finite() const { return std::isfinite(moment_) && std::isfinite(largest_); }

    // Sums of the softmax; with `weights`, also those of exp(shifted · inverse). Meanwhile asks for the line at `next`.
    void weigh(bool weights, float inverse, const float* next) {
        const bool same = inverse == 1.f;
        Doubles total, moment, sum;
        for (int block = 0; block < blocks_; ++block) {
            float tail[kBlock];
            const float* x = block_of(block, tail);
            for (int i = 0; next && i < kBlock; i += 16)
                _mm_prefetch(reinterpret_cast<const char*>(next + block * kBlock + i), _MM_HINT_T1);
            vf e_sum = splat(0.f), moments = splat(0.f);
            for (int i = 0; i < kBlock; i += kLanes) {
                const vf s = load(x + i) - splat(largest_), e = weight_of(s);
                e_sum = e_sum + e;
                moments = fma(e, s, moments);
                if (weights) {
                    const vf w = same ? e : weight_of(s * splat(inverse));
                    store(w_ + block * kBlock + i, w);
                    sum.add(w);
                }
            }
            total.add(e_sum);
            moment.add(moments);
        }
        total_ = total.total(), moment_ = moment.total(), mass_ = sum.total();
    }

    int64_t argmax() const {
        int i = 0;
        while (i + kLanes < vocab_ && !any_equal(load(logits_ + i), splat(largest_))) i += kLanes;
        while (i + 1 < vocab_ && logits_[i] != largest_) ++i;
        return i;
    }

    // Weight 0 for all words less likely than the k-th.
    void keep_top(int64_t k) {
        if (k >= vocab_) return;
        const float least = kth(k);
        Doubles sum;
        for (int i = 0; i < vocab_; ++i)
            if (shifted(i) < least) w_[i] = 0.f;
        for (int i = 0; i < blocks_ * kBlock; i += kLanes) sum.add(load(w_ + i));
        mass_ = sum.total();
    }

    // Weight 0 outside the fewest heaviest words that reach the share `top_p`.
    void keep_nucleus(double top_p) {
        const double goal = top_p * mass_;
        // All words lighter than this together do not reach what may be left out.
        const float cut = float((1 - top_p) * mass_ / vocab_ * 0.999);
        vf sum = splat(0.f);
        float* const some = scratch_.some.data();
        float* end = some;
        for (int i = 0; i < blocks_ * kBlock; i += kLanes) {
            const vf w = load(w_ + i);
            end = append(end, w, splat(cut), splat(INFINITY));
            sum = sum + at_least(w, splat(cut));
        }
        const int count = int(end - some);
        if (count <= kFew || !between(some, count, goal, double(lavila::sum(sum))))
            last_inside(some, count, goal, 0, cut, true);
        drop_late_twins();
    }

    // Inverts the cumulative weights in vocabulary order.
    int64_t draw(double u) {
        auto& before = scratch_.before;
        const double goal = std::min(u * mass_, std::nextafter(mass_, 0.));
        while (before.back() <= goal && int(before.size()) <= blocks_) {
            const float* w = w_ + int64_t(before.size() - 1) * kBlock;
            Doubles sum;
            for (int i = 0; i < kBlock; i += kLanes) sum.add(at_least(load(w + i), splat(least_)));
            before.push_back(before.back() + sum.total());
        }
        const auto after = std::upper_bound(before.begin(), before.end(), goal);
        int64_t word = std::max<int64_t>(after - before.begin() - 1, 0) * kBlock, last = 0;
        double sum = after == before.begin() ? 0 : *std::prev(after);
        if (after == before.end()) word = 0, sum = 0;  // rounding left nothing: the last word that weighs anything
        for (; word < vocab_ && sum <= goal; ++word) {
            if (!(w_[word] >= least_) || w_[word] == 0.f) continue;
            last = word;
            sum += double(w_[word]);
        }
        return last;
    }

    void log_probabilities(float* out) const {
        const float shift = float(log_total());
        int i = 0;
        for (; i + kLanes <= vocab_; i += kLanes) store(out + i, load(logits_ + i) - splat(largest_) - splat(shift));
        for (; i < vocab_; ++i) out[i] = shifted(i) - shift;
    }

  private:
    // 256 logits; of the last block a copy, filled up with words too unlikely to weigh anything.
    const float* block_of(int block, float* tail) const {
        const float* x = logits_ + int64_t(block) * kBlock;
        const int here = std::min(vocab_ - block * kBlock, kBlock);
        if (here == kBlock) return x;
        std::fill(std::copy_n(x, here, tail), tail + kBlock, largest_ - 1e6f);
        return tail;
    }

    float most() const {
        vf top[4];
        for (vf& chain : top) chain = splat(logits_[0]);
        int i = 0;
        for (; i + 4 * kLanes <= vocab_; i += 4 * kLanes)
            for (int j = 0; j < 4; ++j) top[j] = vmax(top[j], load(logits_ + i + j * kLanes));
        float most = largest(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])));
        for (; i < vocab_; ++i) most = std::max(most, logits_[i]);
        return most;
    }

    // The k-th largest of the shifted logits. The k-th largest of the lanes' maxima bounds it from below.
    float kth(int64_t k) {
        float* best = scratch_.some.data();
        int maxima = 0;
        for (int block = 0; block < blocks_; ++block, maxima += kLanes) {
            float tail[kBlock];
            const float* x = block_of(block, tail);
            vf top = load(x);
            for (int i = kLanes; i < kBlock; i += kLanes) top = vmax(top, load(x + i));
            store(best + maxima, top - splat(largest_));
        }
        float bound = -INFINITY;
        if (k <= maxima) {
            std::nth_element(best, best + k - 1, best + maxima, std::greater<float>());
            bound = best[k - 1];
        }
        float* end = best;
        for (int block = 0; block < blocks_; ++block) {
            float tail[kBlock];
            const float* x = block_of(block, tail);
            for (int i = 0; i < kBlock; i += kLanes)
                end = append(end, load(x + i) - splat(largest_), splat(bound), splat(INFINITY));
        }
        if (end - best < k) return -INFINITY;  // not numbers
        std::nth_element(best, best + k - 1, end, std::greater<float>());
        return best[k - 1];
    }

    // Looks for the border only between two weights that a sample suggests; says whether it was there.
    bool between(float* all, int count, double goal, double sum) {
        float low, high;
        bracket(all, count, sum - goal, low, high);
        Doubles above;
        float* const fewer = scratch_.fewer.data();
        float* end = fewer;
        for (int i = 0; i < count; i += kLanes) {
            const vf w = load(all + i, mask_of(count - i));
            end = append(end, w, splat(low), splat(high));
            above.add(at_least(w, splat(high)));
        }
        return above.total() < goal && last_inside(fewer, int(end - fewer), goal, above.total(), low, false);
    }

    // Two weights between which the border probably lies: above those that sum up to `outside`.
    void bracket(const float* all, int count, double outside, float& low, float& high) {
        auto& bins = scratch_.bins;
        std::fill(bins.begin(), bins.end(), 0.);
        const int step = count / kSampled;
        int taken = 0, least = kBins - 1;
        for (int i = step / 2; i < count; i += step, ++taken) {
            const int bin = bin_of(all[i]);
            bins[size_t(bin)] += double(all[i]);
            least = std::min(least, bin);
        }
        outside *= double(taken) / count;
        int bin = least;
        double sum = bins[size_t(bin)];
        while (sum < 0.8 * outside && bin < kBins - 1) sum += bins[size_t(++bin)];
        low = edge_of(bin);
        while (sum < 1.2 * outside && bin < kBins - 1) sum += bins[size_t(++bin)];
        high = bin + 1 < kBins ? edge_of(bin + 1) : INFINITY;
        if (bin == least) low = 0.f;
    }

    // Finds the lightest word inside: its weight and how many of that weight are in. `all`, none lighter than `low`, is
    // overwritten once it is sure that with `sum`, what is heavier, it reaches the goal (or if it `must`).
    bool last_inside(float* all, int count, double goal, double sum, float low, bool must) {
        auto& bins = scratch_.bins;
        const int least = bin_of(low);
        std::fill(bins.begin() + least, bins.end(), 0.);
        for (int i = 0; i < count; ++i) bins[size_t(bin_of(all[i]))] += double(all[i]);
        int bin = kBins - 1;
        while (bin > least && sum + bins[size_t(bin)] < goal) sum += bins[size_t(bin--)];
        if (!must && sum + bins[size_t(bin)] < goal) return false;
        float* end = all;
        for (int i = 0; i < count; i += kLanes)
            end = append(end, load(all + i, mask_of(count - i)), splat(edge_of(bin)), splat(edge_of(bin + 1)));
        std::sort(all, end, std::greater<float>());
        const float* last = all;
        while (last + 1 < end && sum + double(*last) < goal) sum += double(*last++);
        if (all == end) return true;  // not numbers
        mass_ = sum + double(*last);
        least_ = *last;
        const auto twins = std::equal_range(all, end, least_, std::greater<float>());
        twins_ = size_t(last + 1 - twins.first);
        all_twins_ = last + 1 == twins.second;
        return true;
    }

    void drop_late_twins() {
        if (all_twins_) return;
        size_t left = twins_;
        for (int i = 0; i < vocab_; ++i)
            if (w_[i] == least_) {
                if (left) --left;
                else w_[i] = 0.f;
            }
    }

    const float* logits_;
    int vocab_, blocks_;
    Scratch& scratch_;
    float* w_;
    float largest_ = 0, least_ = 0;
    size_t twins_ = 0;
    bool all_twins_ = true;
    double total_ = 0, moment_ = 0, mass_ = 0;
};

}  // namespace lavila
