// The narrator's text decoder, one token a row at a time (the function is that of lavila_fast/models/gpt2.py).
//
// A clip holds its cross-attention keys and values. Rows hold their past as lists of pages: rows that were forked share
// pages until one of them writes, and rows that move or leave move nothing. What becomes of a row never depends on
// other rows, their order or the number of threads.
//
// An INT8 model keeps keys and values as bytes with a scale a vector: a step reads more than it computes, and beside the
// quantized products that loses nothing that can be measured.
//
// Functions that can fail return NULL or non-zero; lv_error() says why. Clips and rows keep what they need of a decoder.
// The data of "…wte.weight" are read in place and must outlive everything, as must the threads.
#pragma once
#include "lavila.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lv_decoder lv_decoder;
typedef struct lv_clip lv_clip;
typedef struct lv_rows lv_rows;

LV_API lv_decoder* lv_decoder_new(const lv_tensor* tensors, int count, int n_embd, int n_layer, int n_head, int vocab,
                                  int n_positions, int freq, int queries, lv_threads*);
LV_API void lv_decoder_free(lv_decoder*);

LV_API lv_clip* lv_decoder_clip(lv_decoder*, const float* visual);  // (queries, n_embd)
LV_API void lv_clip_free(lv_clip*);

LV_API lv_rows* lv_rows_new(lv_decoder*);
LV_API void lv_rows_free(lv_rows*);
// Appends `samples` rows for each clip; the begin token is fed once a clip.
LV_API int lv_rows_join(lv_rows*, lv_clip* const* clips, int count, int samples);
LV_API int lv_rows_step(lv_rows*, const int64_t* tokens, int count);  // one token a row
LV_API int lv_rows_select(lv_rows*, const int64_t* rows, int count);  // row i becomes what row rows[i] was
LV_API int lv_rows_count(const lv_rows*);
LV_API void lv_rows_slots(const lv_rows*, int64_t* slots);  // the clip of each row, numbered as they first appear
LV_API int lv_rows_logits(const lv_rows*, float* out);      // (rows, vocab)
LV_API int lv_rows_logprobs(const lv_rows*, float* out);    // (rows, vocab)
LV_API int lv_rows_sample(const lv_rows*, double temperature, int64_t top_k, double top_p, const double* u,
                          int64_t* tokens, float* logprob, float* entropy);

#ifdef __cplusplus
}
#endif
