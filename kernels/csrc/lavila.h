// C interface of the native CPU engine: plain C, so that one library serves every Python and needs no headers of it.
// Functions that can fail return NULL or a non-zero code; lv_error() then says why (one line, of this thread).
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LV_API __attribute__((visibility("default")))

enum { LV_F32 = 0, LV_F16 = 1, LV_I8 = 2 };

// A named tensor of the weights file, row-major. Matrices of linear layers lie (inputs, outputs); an int8 matrix
// "X.weight" comes with float32 "X.weight_scale" (outputs,): W = weight * weight_scale.
typedef struct {
    const char* name;
    int32_t dtype;
    int32_t rank;
    int64_t shape[4];
    const void* data;
} lv_tensor;

typedef struct lv_threads lv_threads;  // a pool of threads, the caller's included

LV_API const char* lv_error(void);
LV_API int lv_version(void);
LV_API const char* lv_sources(void);  // the key of what it was compiled from, see kernels/native.py
LV_API const char* lv_isa(void);  // what the CPU offers and the kernels use: "amx", "vnni", "avx512", "avx2" or "none"
LV_API lv_threads* lv_threads_new(int threads);
LV_API void lv_threads_free(lv_threads*);


// The video encoder. `prefix` stands before the names ("visual."); act: 1 quick_gelu, 2 gelu. The patch embedding has a
// bias where there is no ln_pre. One object, one call at a time.
typedef struct lv_tsf lv_tsf;
LV_API lv_tsf* lv_tsf_new(const lv_tensor*, int count, const char* prefix, int img, int patch, int dim, int depth,
                          int heads, int frames, int ln_pre, int act, int gated, lv_threads*);
// video (3, frames, img, img), normalised → tokens (1 + frames·N, dim) after the last norm, or CLS (dim) alone. 0 is good.
LV_API int lv_tsf_run(lv_tsf*, const float* video, int frames, float* tokens, int cls_only);
LV_API void lv_tsf_free(lv_tsf*);

// The attention pool and its norm ("img_queries", "img_attn_pool…"): tokens (count, dim) → visual (queries, width).
typedef struct lv_pool lv_pool;
LV_API lv_pool* lv_pool_new(const lv_tensor*, int count, int dim, int width, int heads, int queries, lv_threads*);
LV_API int lv_pool_run(lv_pool*, const float* tokens, int count, float* visual);
LV_API void lv_pool_free(lv_pool*);

// A decoded picture, chroma at half size in both directions, and the part of it that becomes a square of `size` pixels.
// kernels/preprocess/reference.py states what is computed and makes `colours`, `low`, `weight` and `rest`.
typedef struct {
    const uint8_t* plane[3];  // Y; U and V, or both of them in pairs
    int64_t stride[3];        // bytes from a row to the next
    int64_t bytes[3];         // that may be read
    int32_t width, height;
    int32_t bits, shift;      // of a sample; above 8 it takes two bytes, `shift` bits up
    int32_t paired, left;     // U and V in one plane; chroma sits at the left of its two columns
    int32_t colours[7];
} lv_picture;
typedef struct {
    int32_t size;
    const int32_t* low_x;     // (size): output i is rest[i] · sample low[i] + weight[i] · the next one
    const float *weight_x, *rest_x;
    const int32_t* low_y;
    const float *weight_y, *rest_y;
    float mean[3], std[3];    // output = (RGB on 0..255 - mean) / std
} lv_window;
// picture → out (3, size, size). 0 is good. Any number of threads at once.
LV_API int lv_preprocess(const lv_picture*, const lv_window*, float* out);
// The same, not normalised: whole levels, out (size, size, 3).
LV_API int lv_preprocess_levels(const lv_picture*, const lv_window*, uint8_t* out);

#ifdef __cplusplus
}
#endif
