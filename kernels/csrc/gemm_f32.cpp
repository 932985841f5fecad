// float32 products: a block of rows times three vectors of outputs in registers, over the inputs in order and in pieces
// of kPiece that are summed then (so that errors grow slowly): an element is the same bits in whatever block it is.
#include "gemm.h"

namespace lavila {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // 8 x 3 sums, 3 vectors of b and one of a: 28 of 32 registers
#else
constexpr int kRows = 4;
#endif

constexpr int kPiece = 256;        // of inputs
constexpr int kDeep = 3 * kPiece;  // of which the weights of a panel stay in the second-level cache, with all rows

// What is needed next: with every input, the cache line `step` bytes further on is asked for.
struct Ahead {
    const char* from;
    int step;
};

// totals += a (R, K) · b (K, V vectors).
template <int R, int V>
inline __attribute__((always_inline)) void accumulate(int K, const float* a, int64_t lda, const float* b, int64_t ldb,
                                                      vf (&totals)[R][V], Ahead ahead = {}) {
    for (int k = 0; k < K;) {
        vf sums[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r][v] = splat(0.f);
        for (const int end = std::min(K, k + kPiece); k < end; ++k, b += ldb, ahead.from += ahead.step) {
            vf row[V];
            if (ahead.step) _mm_prefetch(ahead.from, _MM_HINT_T1);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vf x = splat(a[r * lda + k]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) sums[r][v] = fma(x, row[v], sums[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) totals[r][v] = totals[r][v] + sums[r][v];
    }
}

// Calls body(integral_constant R) on blocks of kRows rows and then on what is left.
template <int R = kRows, class F>
inline void blocks(int64_t row, int64_t last, const F& body) {
    for (; row + R <= last; row += R) body(row, std::integral_constant<int, R>());
    if constexpr (R > 1)
        if (row < last) blocks<R - 1>(row, last, body);
}

const float* weights(const FloatMatrix& w, int panel, int input) {
    return w.panels.data() + (int64_t(panel) * w.inputs + input) * kPanel;
}

// Inputs [first, last): `kept` (R, kPanel) has the sums of those before and gets these; the last ones go into y.
template <Act A, int R>
inline void block(const FloatMatrix& w, const float* x, int64_t ldx, int panel, int first, int last, float* kept,
                  float* y, const Target& to, Ahead ahead) {
    vf sums[R][3];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < 3; ++v) sums[r][v] = first ? load(kept + r * kPanel + v * kLanes) : splat(0.f);
    accumulate<R, 3>(last - first, x + first, ldx, weights(w, panel, first), kPanel, sums, ahead);
    if (last < w.inputs) {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < 3; ++v) store(kept + r * kPanel + v * kLanes, sums[r][v]);
        return;
    }
    const int column = panel * kPanel;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 3; ++v) {
            const int c = column + v * kLanes;
            if (c < to.outputs)
                put<A>(y + r * to.ldy + c, sums[r][v] + load(&to.bias[c]), to.outputs - c, to.add);
        }
}

template <int V>
void columns(int M, int K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
             int64_t lanes) {
    blocks(0, M, [&](int64_t row, auto R) {
        vf sums[R.value][V];
        for (int r = 0; r < R.value; ++r)
            for (int v = 0; v < V; ++v) sums[r][v] = splat(0.f);
        accumulate<R.value, V>(K, a + row * lda, lda, b, ldb, sums);
        for (int r = 0; r < R.value; ++r)
            for (int v = 0; v < V; ++v)
                store(c + (row + r) * ldc + v * kLanes, sums[r][v], mask_of(lanes - v * kLanes));
    });
}

}  // namespace

void gemm_float(const FloatMatrix& w, const float* x, int64_t ldx, int64_t row, int64_t rows, int panel, int last,
                const Target& to) {
    static thread_local Aligned<float> kept;
    kept.resize(size_t(rows * kPanel));
    constexpr int kWidth = kPanel * int(sizeof(float));
    const int step = int((kWidth * kRows + rows - 1) / rows);  // each block of rows asks for its part
    with_act(to.act, [&](auto act) {
        for (; panel < last; ++panel)
            for (int first = 0; first < w.inputs; first += kDeep) {
                const int end = std::min(first + kDeep, w.inputs);
                float* sums = kept.data();
                Ahead ahead{reinterpret_cast<const char*>(weights(w, panel, end)), step};
                blocks(row, row + rows, [&](int64_t r, auto R) {
                    block<act.value, R.value>(w, x + r * ldx, ldx, panel, first, end, sums, to.y + r * to.ldy, to,
                                              ahead);
                    sums += R.value * kPanel;
                    ahead.from += int64_t(step) * (end - first);
                });
            }
    });
}

void multiply(int M, int N, int K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
    int n = 0;
    for (; N - n > 2 * kLanes; n += 3 * kLanes) columns<3>(M, K, a, lda, b + n, ldb, c + n, ldc, N - n);
    if (N - n > kLanes) columns<2>(M, K, a, lda, b + n, ldb, c + n, ldc, N - n);
    else if (N > n) columns<1>(M, K, a, lda, b + n, ldb, c + n, ldc, N - n);
}

}  // namespace lavila
