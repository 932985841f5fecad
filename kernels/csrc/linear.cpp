// Linear layers, norms and quantization: packing, choice of kernel, division of the work among threads.
//
// Shapes: x (rows, inputs), W (inputs, outputs), y (rows, outputs).
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "gemm.h"

namespace lavila {

struct Linear::Packed {
    int inputs = 0, outputs = 0;
    std::unique_ptr<Int8Matrix> int8;
    std::unique_ptr<FloatMatrix> floats;
};

namespace {

struct Columns {
    int first, count;
};

std::unique_ptr<FloatMatrix> pack_float(const float* w, int inputs, int width, Columns of, float factor) {
    auto m = std::make_unique<FloatMatrix>();
    m->inputs = inputs, m->outputs = of.count;
    m->panels.resize(size_t(round_up(of.count, kPanel)) * size_t(inputs));
    m->bias.assign(size_t(round_up(of.count, kPanel)), 0.f);
    for (int k = 0; k < inputs; ++k)
        for (int n = 0; n < of.count; ++n) {
            const int64_t panel = n / kPanel;
            m->panels[size_t((panel * inputs + k) * kPanel + n % kPanel)] =
                w[int64_t(k) * width + of.first + n] * factor;
        }
    return m;
}

std::unique_ptr<Int8Matrix> pack_int8(const int8_t* w, const float* scale, int inputs, int width, Columns of,
                                      float factor) {
    auto m = std::make_unique<Int8Matrix>();
    m->inputs = inputs, m->outputs = of.count;
    const size_t padded = size_t(round_up(of.count, kWide));
    m->panels.resize(padded / kWide * size_t(m->panel_bytes()));
    m->scale.assign(padded, 0.f), m->bias.assign(padded, 0.f), m->correction.assign(padded, 0);
    for (int n = 0; n < of.count; ++n) m->scale[size_t(n)] = scale[of.first + n] * factor;
    for (int k = 0; k < inputs; ++k)
        for (int n = 0; n < of.count; ++n) {
            const int8_t value = w[int64_t(k) * width + of.first + n];
            const size_t tile = size_t(n / kWide) * size_t(m->panel_bytes()) + size_t(k / 64 * 64 * kWide) +
                                size_t(n % kWide / 16 * 1024);
            m->panels[tile + size_t(k % 64 / 4 * 64 + n % 16 * 4 + k % 4)] = value;
            m->correction[size_t(n)] += 128 * value;
        }
    return m;
}

Int8Gemm& int8_kernel() {
#if defined(__AVX512F__)
    if (isa() == Isa::amx) return gemm_int8_amx;
    if (isa() == Isa::vnni) return gemm_int8_vnni;
#endif
    return gemm_int8_wide;
}

// How a product is cut into tasks: blocks of rows, and as many panels as stay in the second-level cache with them.
struct Grid {
    int64_t rows, row_step, row_blocks, tasks;
    int panels, panel_step;
    Grid(int64_t rows, int panels, int64_t panel_bytes, int threads) : rows(rows), panels(panels) {
        constexpr int64_t kRows = 160, kCached = 512 << 10, kTasksEach = 6, kSmall = 64 << 10;
        row_step = kRows;
        row_blocks = (rows + row_step - 1) / row_step;
        const int64_t wanted = std::max<int64_t>(1, threads * kTasksEach / row_blocks);
        const int64_t small = panel_bytes * panels * (1 + rows / 16) < kSmall;
        panel_step = small ? panels
                           : int(std::clamp<int64_t>(std::min(kCached / panel_bytes, panels / wanted), 1, panels));
        tasks = row_blocks * ((panels + panel_step - 1) / panel_step);
    }
    template <class F>
    void run(Pool& pool, const F& body) const {
        parallel(pool, tasks, [&](int64_t task) {
            // A thread begins with tasks beside each other: give it rows that it had in the layer before.
            const int64_t groups = tasks / row_blocks, parts = std::min<int64_t>(pool.threads(), row_blocks);
            int64_t part = 0, first = 0, count = row_blocks / parts + (row_blocks % parts > 0);
            for (; task >= count * groups; count = row_blocks / parts + (row_blocks % parts > part))
                task -= count * groups, first += count, ++part;
            const int64_t row = (first + task % count) * row_step;
            const int panel = int(task / count) * panel_step;
            body(row, std::min(row_step, rows - row), panel, std::min(panel + panel_step, panels));
        });
    }
};

}  // namespace

Linear::Linear(const Tensors& tensors, const std::string& prefix, int inputs, int outputs, float factor, int first,
               int count) {
    const lv_tensor& w = tensors.get(prefix + ".weight");
    const Columns of{first, count ? count : outputs};
    auto packed = std::make_shared<Packed>();
    packed->inputs = inputs, packed->outputs = of.count;
    if (w.dtype == LV_I8) {
        if (w.rank != 2 || w.shape[0] != inputs || w.shape[1] != outputs)
            throw std::runtime_error("tensor '" + prefix + ".weight' is not (" + std::to_string(inputs) + ", " +
                                     std::to_string(outputs) + ")");
        const auto scale = tensors.floats(prefix + ".weight_scale", {outputs});
        packed->int8 = pack_int8(static_cast<const int8_t*>(w.data), scale.data(), inputs, outputs, of, factor);
    } else {
        packed->floats = pack_float(tensors.floats(prefix + ".weight", {inputs, outputs}).data(), inputs, outputs, of,
                                    factor);
    }
    if (tensors.has(prefix + ".bias")) {
        const auto bias = tensors.floats(prefix + ".bias", {outputs});
        float* to = packed->int8 ? packed->int8->bias.data() : packed->floats->bias.data();
        for (int n = 0; n < of.count; ++n) to[n] = bias[size_t(of.first + n)] * factor;
    }
    packed_ = packed;
}

Linear::Linear(const std::vector<float>& weight, const std::vector<float>& bias, int inputs, int outputs) {
    auto packed = std::make_shared<Packed>();
    packed->inputs = inputs, packed->outputs = outputs;
    packed->floats = pack_float(weight.data(), inputs, outputs, {0, outputs}, 1.f);
    std::copy(bias.begin(), bias.end(), packed->floats->bias.begin());
    packed_ = packed;
}

int Linear::inputs() const { return packed_->inputs; }
int Linear::outputs() const { return packed_->outputs; }
bool Linear::int8() const { return packed_->int8 != nullptr; }

void Linear::run(Pool& pool, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, Act act,
                 bool add) const {
    if (int8()) {
        static thread_local QuantRows quantized;
        quantize(pool, x, ldx, rows, inputs(), quantized);
        return run(pool, quantized, y, ldy, act, add);
    }
    if (rows < 1) return;  // no task could be cut
    const FloatMatrix& w = *packed_->floats;
    const Target to{y, ldy, w.outputs, w.bias.data(), act, add};
    const int panels = int(round_up(w.outputs, kPanel) / kPanel);
    Grid(rows, panels, int64_t(sizeof(float)) * kPanel * w.inputs, pool.threads())
        .run(pool, [&](int64_t row, int64_t count, int panel, int last) {
            gemm_float(w, x, ldx, row, count, panel, last, to);
        });
}

void Linear::run(Pool& pool, const QuantRows& x, float* y, int64_t ldy, Act act, bool add) const {
    if (x.rows < 1) return;
    const Int8Matrix& w = *packed_->int8;
    const Target to{y, ldy, w.outputs, w.bias.data(), act, add};
    Int8Gemm& kernel = int8_kernel();
    Grid(x.rows, int(round_up(w.outputs, kWide) / kWide), w.panel_bytes(), pool.threads())
        .run(pool, [&](int64_t row, int64_t count, int panel, int last) {
            kernel(w, x, row, count, panel, last, to);
        });
}

void QuantRows::resize(int64_t new_rows, int new_width) {
    rows = new_rows, width = new_width, stride = int(round_up(new_width, 64)), tiles = isa() == Isa::amx;
    const size_t bytes = size_t(round_up(rows, 32) * stride);
    if (data.size() < bytes) data.resize(bytes);
    if (scale.size() < size_t(rows)) scale.resize(size_t(rows));
}

namespace {

constexpr int64_t kRowsATask = 16;

// Runs body(row, count) over all rows, by R as long as there are so many; few rows are not worth waking anyone.
template <int R = 1, class F>
void each_row(Pool& pool, int64_t rows, int64_t width, const F& body) {
    const int64_t step = rows * width < 1 << 14 ? rows : kRowsATask;
    parallel(pool, step ? (rows + step - 1) / step : 0, [&](int64_t task) {
        const int64_t last = std::min(rows, (task + 1) * step);
        int64_t row = task * step;
        for (; row + R <= last; row += R) body(row, std::integral_constant<int, R>());
        for (; row < last; ++row) body(row, std::integral_constant<int, 1>());
    });
}

void quantize_row(const float* x, QuantRows& to, int64_t row) {
    const int width = to.width;
    vf top = splat(0.f), tops[4] = {top, top, top, top};  // four, for one would wait for itself
    int i = 0;
    for (; i + 4 * kLanes <= width; i += 4 * kLanes)
        for (int j = 0; j < 4; ++j) tops[j] = vmax_positive(tops[j], vabs(load(x + i + j * kLanes)));
    for (const vf t : tops) top = vmax_positive(top, t);
    for (; i + kLanes <= width; i += kLanes) top = vmax_positive(top, vabs(load(x + i)));
    const Mask rest = mask_of(width - i);
    if (i < width) top = vmax_positive(top, vabs(load(x + i, rest)));
    const float most = largest_positive(top);
    to.scale[size_t(row)] = most == 0.f ? 1.f : most / 127.f;  // with a value that is no number, none either
    const vf factor = splat(most > 0.f ? 127.f / most : 1.f), limit = splat(127.f);
    const vi zero = splat_int(128);
    const auto put = [&](vf v) {  // not a number becomes -127: the row's scale says it
        return add_int(to_int(vmin(vmax(v * factor, splat(-127.f)), limit)), zero);
    };
    uint8_t* out = &to.data[to.at(row, 0)];
    const int next = int(to.at(0, 64) - to.at(0, 0));
    for (i = 0; i + 64 <= width; i += 64, out += next)
        for (int j = 0; j < 64; j += kLanes) store_bytes(out + j, put(load(x + i + j)));
    for (int j = 0; i < width; i += kLanes, j += kLanes) store_bytes(out + j, put(load(x + i, mask_of(width - i))));
}

// R rows at once, each on its own, for a row's sums wait for one another.
template <int R>
void norm_rows(const Norm& n, const float* x, int64_t ldx, float* y, int64_t ldy) {
    const int width = int(n.weight.size());
    const int whole = width / kLanes * kLanes;
    const Mask rest = mask_of(width - whole);
    vf total[R], squares[R];
    float mean[R], factor[R];
    for (int r = 0; r < R; ++r) total[r] = squares[r] = splat(0.f);
    for (int i = 0; i < whole; i += kLanes)
        for (int r = 0; r < R; ++r) total[r] = total[r] + load(x + r * ldx + i);
    for (int r = 0; r < R; ++r) {
        if (whole < width) total[r] = total[r] + load(x + r * ldx + whole, rest);
        mean[r] = sum(total[r]) / float(width);
    }
    for (int i = 0; i < whole; i += kLanes)
        for (int r = 0; r < R; ++r) {
            const vf d = load(x + r * ldx + i) - splat(mean[r]);
            squares[r] = fma(d, d, squares[r]);
        }
    for (int r = 0; r < R; ++r) {
        float tail = 0.f;
        for (int i = whole; i < width; ++i) tail += (x[r * ldx + i] - mean[r]) * (x[r * ldx + i] - mean[r]);
        factor[r] = 1.f / std::sqrt((sum(squares[r]) + tail) / float(width) + n.eps);
    }
    for (int i = 0; i < whole; i += kLanes)
        for (int r = 0; r < R; ++r)
            store(y + r * ldy + i, fma((load(x + r * ldx + i) - splat(mean[r])) * splat(factor[r]),
                                       load(&n.weight[size_t(i)]), load(&n.bias[size_t(i)])));
    for (int r = 0; r < R; ++r)
        for (int i = whole; i < width; ++i)
            y[r * ldy + i] = (x[r * ldx + i] - mean[r]) * factor[r] * n.weight[size_t(i)] + n.bias[size_t(i)];
}

}  // namespace

Norm::Norm(const Tensors& tensors, const std::string& prefix, int width, float eps)
    : weight(tensors.floats(prefix + ".weight", {width})), bias(tensors.floats(prefix + ".bias", {width})), eps(eps) {}

void Norm::run(Pool& pool, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy) const {
    each_row<4>(pool, rows, int64_t(weight.size()), [&](int64_t row, auto count) {
        norm_rows<decltype(count)::value>(*this, x + row * ldx, ldx, y + row * ldy, ldy);
    });
}

void Norm::run(Pool& pool, const float* x, int64_t ldx, int64_t rows, QuantRows& y) const {
    const int width = int(weight.size());
    y.resize(rows, width);
    each_row<4>(pool, rows, width, [&](int64_t row, auto count) {
        constexpr int kCount = decltype(count)::value;
        static thread_local std::vector<float> normed;
        normed.resize(size_t(kCount * width));
        norm_rows<kCount>(*this, x + row * ldx, ldx, normed.data(), width);
        for (int r = 0; r < kCount; ++r) quantize_row(&normed[size_t(r * width)], y, row + r);
    });
}

void quantize(Pool& pool, const float* x, int64_t ldx, int64_t rows, int width, QuantRows& y) {
    y.resize(rows, width);
    each_row(pool, rows, width, [&](int64_t row, auto) {
        quantize_row(x + row * ldx, y, row);
    });
}

}  // namespace lavila
