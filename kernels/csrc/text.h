// What stands beside the video encoder in dual encoders and classifiers: text towers, and the small last layers.
//
// A tower reads texts of any lengths at once: padding never gets here, every layer runs over the tokens of all texts
// together, what a causal tower makes of a beginning that texts share is made once, and the last layer computes no more
// than the one token a text that becomes its feature. What becomes of a text never depends on others or on threads. The data of the words' vectors are read in place and must outlive
// the tower, as must the threads.
#pragma once
#include "lavila.h"

#ifdef __cplusplus
extern "C" {
#endif

// kind 0: CLIP's (causal; a text's feature is that of its last token, which is its end token); 1: DistilBERT (the first).
typedef struct lv_text lv_text;
LV_API lv_text* lv_text_new(const lv_tensor*, int count, int kind, int width, int heads, int layers, int hidden,
                            int vocab, int positions, lv_threads*);
// ids: those of all texts, one text after the other; lengths (texts) → features (texts, width). 0 is good.
LV_API int lv_text_run(lv_text*, const int64_t* ids, const int64_t* lengths, int texts, float* features);
LV_API void lv_text_free(lv_text*);

// A last layer by name, in float32: a matrix "NAME" (inputs, outputs), or a layer "NAME.weight" with "NAME.bias".
// `relu`: of what goes in; `unit`: rows of length 1 come out.
typedef struct lv_head lv_head;
LV_API lv_head* lv_head_new(const lv_tensor*, int count, const char* name, int inputs, int outputs, int relu, int unit,
                            lv_threads*);
LV_API int lv_head_run(lv_head*, const float* x, int rows, float* y);  // (rows, inputs) → (rows, outputs)
LV_API void lv_head_free(lv_head*);

#ifdef __cplusplus
}
#endif
