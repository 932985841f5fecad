// What the files of the library share behind linear.h: the packed forms of a matrix, the products on them, epilogues.
//
// Shapes: M rows, K inputs, N outputs. int8 weights lie in panels of 32 outputs: [N/32][K/64][2][16][16][4] bytes, i.e. panel,
// block of 64 inputs, half panel, group of 4 inputs, output, input: tiles as AMX reads them, whose rows VNNI reads.
// float weights lie in panels of 3 vectors: [N/kPanel][K][kPanel].
#pragma once
#include <algorithm>
#include <atomic>
#include <exception>

#include "linear.h"
#include "simd.h"

struct lv_threads {
    lavila::Pool pool;
    explicit lv_threads(int threads) : pool(threads) {}
};

namespace lavila {

enum class Isa { avx2, avx512, vnni, amx };
Isa isa();
const char* name(Isa);
std::string& last_error();

// Runs a function of the C interface: exceptions become the thread's error and a null result.
template <class F>
auto guarded(const F& body) -> decltype(body()) {
    try {
        return body();
    } catch (const std::exception& error) {
        last_error() = error.what();
    } catch (...) {
        last_error() = "unknown failure in the native library";
    }
    return {};
}

constexpr int kWide = 32;            // outputs in a panel of int8 weights
constexpr int kPanel = 3 * kLanes;   // outputs in a panel of float weights

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <class T>
using Aligned = std::vector<T, OnCacheLines<T>>;

template <class F>
void parallel(Pool& pool, int64_t tasks, const F& body) {
    pool.share(tasks, [&body](int64_t task) { body(task); });
}

// Where a product goes: y = act(sums · scales + bias), or added to y.
struct Target {
    float* y;
    int64_t ldy;
    int outputs;
    const float* bias;  // kPanel or kWide readable past the end
    Act act;
    bool add;
};

template <Act A, bool Quick>
inline vf activate(vf x) {
    if constexpr (A == Act::quick_gelu && Quick) return x * quick_sigmoid(x * splat(1.702f));
    if constexpr (A == Act::quick_gelu) return x * sigmoid(x * splat(1.702f));
    if constexpr (A == Act::gelu) return x * normal_cdf(x);
    if constexpr (A == Act::gelu_tanh)  // ½(1 + tanh u) = sigmoid(2u)
        return x * sigmoid(x * fma(x * x, splat(2.f * 0.79788456f * 0.044715f), splat(2.f * 0.79788456f)));
    if constexpr (A == Act::squared_relu) {
        const vf positive = vmax(x, splat(0.f));
        return positive * positive;
    }
    return x;
}

// Calls body(std::integral_constant<Act>) with the act as a constant.
template <class F>
inline void with_act(Act act, const F& body) {
    switch (act) {
        case Act::none: return body(std::integral_constant<Act, Act::none>());
        case Act::quick_gelu: return body(std::integral_constant<Act, Act::quick_gelu>());
        case Act::gelu: return body(std::integral_constant<Act, Act::gelu>());
        case Act::gelu_tanh: return body(std::integral_constant<Act, Act::gelu_tanh>());
        case Act::squared_relu: return body(std::integral_constant<Act, Act::squared_relu>());
    }
}

template <Act A, bool Quick = false>
inline void put(float* y, vf value, int64_t lanes, bool add) {
    value = activate<A, Quick>(value);
    if (lanes >= kLanes) {
        store(y, add ? load(y) + value : value);
    } else if (lanes > 0) {
        const Mask m = mask_of(lanes);
        store(y, add ? load(y, m) + value : value, m);
    }
}

struct Int8Matrix {
    int inputs, outputs;
    Aligned<int8_t> panels;
    std::vector<float> scale, bias;   // padded to panels
    std::vector<int32_t> correction;  // 128 · sum of a column: what the activations' zero point adds
    int panel_bytes() const { return int(round_up(inputs, 64)) * kWide; }
};

struct FloatMatrix {
    int inputs, outputs;
    Aligned<float> panels;
    std::vector<float> bias;
};

// Rows [row, row + rows) times panels [panel, last), into the target.
void gemm_float(const FloatMatrix&, const float* x, int64_t ldx, int64_t row, int64_t rows, int panel, int last,
                const Target&);
typedef void Int8Gemm(const Int8Matrix&, const QuantRows&, int64_t row, int64_t rows, int panel, int last,
                      const Target&);
Int8Gemm gemm_int8_wide, gemm_int8_vnni, gemm_int8_amx;

// c (M, N) = a (M, K) · b (K, N), single-threaded, any sizes and distances from row to row.
void multiply(int M, int N, int K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc);

// Rows of int32 sums (rows, 32) of one panel on their way into the target.
struct Sums {
    const int32_t* sums = nullptr;
    const float* x_scale = nullptr;  // (rows,)
    int64_t left = 0;                // rows
    int column = 0;                  // of the panel's first output
    float* y = nullptr;              // there, in the first row
};

template <Act A>
inline __attribute__((always_inline)) void finish_rows(const Int8Matrix& w, const Target& to, Sums& s, int64_t rows) {
    rows = std::min(rows, s.left);
    const auto half = [&](int j, auto lanes) {
        const size_t c = size_t(s.column + j);
        const vi zero = load_int(&w.correction[c]);
        const vf scale = load(&w.scale[c]), bias = load(&w.bias[c]);
        for (int64_t r = 0; r < rows; ++r) {
            const vf exact = to_float(sub_int(load_int(s.sums + r * kWide + j), zero));
            put<A, true>(s.y + r * to.ldy + j, fma(exact, splat(s.x_scale[r]) * scale, bias), lanes, to.add);
        }
    };
    for (int j = 0; j < kWide; j += kLanes)
        if (s.column + j + kLanes <= w.outputs) half(j, std::integral_constant<int64_t, kLanes>());
        else half(j, int64_t(w.outputs - s.column - j));
    s.left -= rows, s.sums += rows * kWide, s.y += rows * to.ldy, s.x_scale += rows;
}

inline void finish(const Int8Matrix& w, const QuantRows& x, const int32_t* sums, int64_t row, int64_t rows, int column,
                   const Target& to) {
    Sums s{sums, &x.scale[size_t(row)], rows, column, to.y + row * to.ldy + column};
    with_act(to.act, [&](auto act) { finish_rows<decltype(act)::value>(w, to, s, rows); });
}

}  // namespace lavila
