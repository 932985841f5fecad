// C interface of the CUDA library: plain C, so that one library serves every Python and every torch.
// Functions that launch give 0 or a CUDA error, of which lv_cuda_error() knows the words.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LV_CUDA_F32 = 0, LV_CUDA_F16 = 1, LV_CUDA_BF16 = 2 };

// A decoded picture in GPU memory and where it goes. Its numbers are those of kernels/preprocess/reference.py.
typedef struct {
    const void *y, *u, *v;       // samples: y (height, width), u and v (⌈height/2⌉, ⌈width/2⌉)
    int32_t y_pitch, c_pitch;    // bytes from row to row
    int32_t width, height;
    int32_t bits, shift, step;   // of a sample; bits below it; samples from one u (or v) to the next
    int32_t left, turn;          // chroma sits at the left of its columns; quarter turns counter-clockwise
    float across, down;          // source samples from one output to the next, as the turned picture has it
    int32_t across_at, down_at;  // outputs cut off at its left and top
    int32_t clip, place;         // goes to out[clip, :, place]
    struct {
        int32_t table, y, y0, v_to_r, u_to_g, v_to_g, u_to_b;
    } colours;
} lv_frame;

#ifdef __CUDACC__
#define LV_CUDA_API __attribute__((visibility("default")))
#else
#define LV_CUDA_API
#endif

LV_CUDA_API int lv_cuda_version(void);
LV_CUDA_API const char* lv_cuda_sources(void);  // the key of what it was compiled from, see kernels/libraries.py
LV_CUDA_API int lv_cuda_devices(int* count);
LV_CUDA_API const char* lv_cuda_error(int);
// frames (count), in host memory → out (clips, 3, places, size, size), contiguous, of a LV_CUDA type, on `device`;
// channel c is (value - mean[c]) * factor[c]. Nothing is waited for: pictures must live until `stream` has passed.
LV_CUDA_API int lv_cuda_preprocess(const lv_frame* frames, int count, int size, const float* mean, const float* factor,
                                   void* out, int type, int places, int device, void* stream);

#ifdef __cplusplus
}
#endif
