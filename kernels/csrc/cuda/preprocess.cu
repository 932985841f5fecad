// YUV pictures to normalised RGB in one pass over GPU memory: every sample that an output needs is read, nothing is
// written but the model's input. Never run on a GPU yet.
//
// A thread makes two neighbouring pixels, so that a warp writes whole lines of 128 bytes in 16-bit types; a row of the
// grid is a picture. Descriptors travel as the kernel's argument: no copy to wait for, and a CUDA graph can hold the
// launch. About 1.8 million reads a 224-pixel picture, nearly all from the L1 cache.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "pixel.h"

namespace {

using lavila::Normal;

constexpr int kThreads = 128, kFrames = 32;  // a launch's arguments must stay below 4 KB

struct Batch {
    lv_frame frames[kFrames];
    Normal normal;
    int size, places, paired;  // paired: two neighbours can be written at once
};
static_assert(sizeof(Batch) + 16 <= 4096, "kernel arguments");

__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(__half* to, float x) { *to = __float2half_rn(x); }
__device__ __forceinline__ void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void put_two(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = {x, y}; }
__device__ __forceinline__ void put_two(__half* to, float x, float y) {
    *reinterpret_cast<__half2*>(to) = __floats2half2_rn(x, y);
}
__device__ __forceinline__ void put_two(__nv_bfloat16* to, float x, float y) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x, y);
}

// out (clips, 3, places, size, size)
template <class T>
__device__ __forceinline__ void two_pixels(const Batch& batch, T* out) {
    const int size = batch.size, pairs = (size + 1) / 2;
    const int index = int(blockIdx.x) * kThreads + int(threadIdx.x);
    const int row = index / pairs, column = index % pairs * 2;
    if (row >= size) return;
    const lv_frame& frame = batch.frames[blockIdx.y];
    float left[3], right[3];
    lavila::pixel(frame, batch.normal, row, column, left);
    lavila::pixel(frame, batch.normal, row, column + 1, right);
    for (int channel = 0; channel < 3; ++channel) {
        const int64_t plane = (int64_t(frame.clip) * 3 + channel) * batch.places + frame.place;
        T* to = out + plane * size * size + int64_t(row) * size + column;
        if (batch.paired) {
            put_two(to, left[channel], right[channel]);
        } else {
            put(to, left[channel]);
            if (column + 1 < size) put(to + 1, right[channel]);
        }
    }
}

}  // namespace

// The key comes as a bare word: compilers differ in how quotes reach them.
#define LV_WORD(x) #x
#define LV_WORDS(x) LV_WORD(x)

// Named plainly, for profilers and the table of resources.
#define LV_KERNEL(name, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(kThreads)                                  \
        name(const __grid_constant__ Batch batch, T* out) {                                 \
        two_pixels(batch, out);                                                             \
    }
LV_KERNEL(preprocess_f32, float)
LV_KERNEL(preprocess_f16, __half)
LV_KERNEL(preprocess_bf16, __nv_bfloat16)

extern "C" {

int lv_cuda_version(void) { return 1; }

const char* lv_cuda_sources(void) { return LV_WORDS(LAVILA_CUDA_SOURCES); }

int lv_cuda_devices(int* count) { return cudaGetDeviceCount(count); }

const char* lv_cuda_error(int error) { return cudaGetErrorString(cudaError_t(error)); }

int lv_cuda_preprocess(const lv_frame* frames, int count, int size, const float* mean, const float* factor, void* out,
                       int type, int places, int device, void* stream) {
    int before = 0;
    if (const cudaError_t error = cudaGetDevice(&before)) return error;
    if (const cudaError_t error = before == device ? cudaSuccess : cudaSetDevice(device)) return error;
    Batch batch{};
    const uintptr_t pair = type == LV_CUDA_F32 ? 8 : 4;
    batch.size = size, batch.places = places, batch.paired = size % 2 == 0 && uintptr_t(out) % pair == 0;
    for (int i = 0; i < 3; ++i) batch.normal.mean[i] = mean[i], batch.normal.factor[i] = factor[i];
    cudaError_t error = cudaSuccess;
    for (int first = 0; first < count && !error; first += kFrames) {
        const int some = count - first < kFrames ? count - first : kFrames;
        for (int i = 0; i < some; ++i) batch.frames[i] = frames[first + i];
        const dim3 grid(unsigned((size * ((size + 1) / 2) + kThreads - 1) / kThreads), unsigned(some));
        const auto on = cudaStream_t(stream);
        if (type == LV_CUDA_F32) preprocess_f32<<<grid, kThreads, 0, on>>>(batch, static_cast<float*>(out));
        if (type == LV_CUDA_F16) preprocess_f16<<<grid, kThreads, 0, on>>>(batch, static_cast<__half*>(out));
        if (type == LV_CUDA_BF16) preprocess_bf16<<<grid, kThreads, 0, on>>>(batch, static_cast<__nv_bfloat16*>(out));
        error = cudaGetLastError();
    }
    if (before != device) cudaSetDevice(before);
    return error;
}

}  // extern "C"
