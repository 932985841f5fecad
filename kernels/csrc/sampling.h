// Choosing words from logits: what lavila_fast/engines/sampling.py defines, one line of logits at a time.
#pragma once
#include "linear.h"

namespace lavila {

struct Warp {
    double temperature;  // 0: the likeliest word
    int64_t top_k;       // 0: all
    double top_p;
};

struct Drawn {
    int64_t* token;
    float *logprob, *entropy;  // both of the unwarped distribution
};

// Throws unless a warp's numbers are in their ranges (engines/sampling.py checks them too).
void require_warp(double temperature, int64_t top_k, double top_p);

// For each of `rows` rows, a word of logits line source[row], drawn with u[row] in [0, 1). Where a
// logit is no finite number, the word is 0 and its scores are NaN.
void choose(Pool&, const float* logits, int vocab, const int64_t* source, int64_t rows, const Warp&, const double* u,
            const Drawn&);

// out (rows, vocab): log-probabilities of line source[row]; all NaN where a logit is no finite number.
void log_softmax(Pool&, const float* logits, int vocab, const int64_t* source, int64_t rows, float* out);

}  // namespace lavila

extern "C" {
// The same on any logits (lines, vocab). Returns 0, or 1 and lv_error().
LV_API int lv_choose(lv_threads*, const float* logits, int vocab, const int64_t* source, int64_t rows,
                     double temperature, int64_t top_k, double top_p, const double* u, int64_t* tokens, float* logprob,
                     float* entropy);
LV_API int lv_log_softmax(lv_threads*, const float* logits, int vocab, const int64_t* source, int64_t rows, float* out);
}
