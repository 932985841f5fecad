// Single layers through the C interface, so that tests can compare them with exact arithmetic.
#include <stdexcept>

#include "gemm.h"

using namespace lavila;

extern "C" {

// Runs `tasks` tasks, of which those whose number `every` divides throw; counts the others. 0 is good.
LV_API int lv_fail(lv_threads* threads, int64_t tasks, int64_t every, int64_t* done) {
    std::atomic<int64_t> good{0};
    const auto task = [&](int64_t number) {
        if (number % every == 0) throw std::runtime_error("task " + std::to_string(number) + " failed");
        ++good;
    };
    return guarded([&] {
        parallel(threads->pool, tasks, task);
        *done = good;
        return 1;
    }) - 1;
}

struct lv_linear {
    Linear layer;
    Pool& pool;
};

LV_API lv_linear* lv_linear_new(const lv_tensor* tensors, int count, const char* prefix, int inputs, int outputs,
                                lv_threads* threads) {
    return guarded([&] { return new lv_linear{Linear(Tensors(tensors, count), prefix, inputs, outputs), threads->pool}; });
}

// x (rows, inputs) → y (rows, outputs); act is a number of lavila::Act.
LV_API int lv_linear_run(const lv_linear* it, const float* x, int64_t rows, float* y, int act, int add) {
    it->layer.run(it->pool, x, it->layer.inputs(), rows, y, it->layer.outputs(), Act(act), add != 0);
    return 0;
}

LV_API void lv_linear_free(lv_linear* it) { delete it; }

// x (rows, width) quantized: q (rows, width) of u8, scale (rows,).
LV_API void lv_quantize(lv_threads* threads, const float* x, int64_t rows, int width, uint8_t* q, float* scale) {
    QuantRows rows_of;
    quantize(threads->pool, x, width, rows, width, rows_of);
    for (int64_t r = 0; r < rows; ++r) {
        for (int i = 0; i < width; ++i) q[r * width + i] = rows_of.data[rows_of.at(r, i)];
        scale[r] = rows_of.scale[size_t(r)];
    }
}

// x (rows, width) → y, both normed as `prefix` says and, if q is given, quantized.
LV_API int lv_norm(const lv_tensor* tensors, int count, const char* prefix, float eps, lv_threads* threads,
                   const float* x, int64_t rows, int width, float* y) {
    return guarded([&] {
        Norm(Tensors(tensors, count), prefix, width, eps).run(threads->pool, x, width, rows, y, width);
        return 1;
    }) - 1;
}

LV_API void lv_act(int act, const float* x, int64_t count, float* y) {
    with_act(Act(act), [&](auto a) {
        for (int64_t i = 0; i < count; i += kLanes)
            put<decltype(a)::value>(y + i, load(x + i, mask_of(count - i)), count - i, false);
    });
}

}  // extern "C"
