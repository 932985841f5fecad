// What the models are made of: a pool, named tensors, linear layers in float32 or INT8, norms.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "lavila.h"

namespace lavila {

// Named tensors; looks up, checks shapes and converts float16 to float32. Throws std::runtime_error with the name.
class Tensors {
  public:
    Tensors(const lv_tensor* tensors, int count);
    bool has(const std::string& name) const;
    const lv_tensor& get(const std::string& name) const;
    std::vector<float> floats(const std::string& name, std::vector<int64_t> shape) const;

  private:
    std::map<std::string, const lv_tensor*> by_name_;
};

// Throws std::runtime_error unless every size is from 1 to 2^24, so that no product of two overflows.
void require_sizes(const char* of, std::initializer_list<int> sizes);

bool all_finite(const float* x, int64_t count);

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    int threads() const;
    // Runs body(task) once for every task, the caller's thread and whichever others are free, and returns when all
    // are done. Not to be called from within a body. If one throws, tasks may be left out, and the first exception is
    // thrown here once no thread is in a body.
    void share(int64_t tasks, const std::function<void(int64_t)>& body);
    // The same for as many tasks as there are threads.
    void run(const std::function<void(int)>& body);

  private:
    struct Impl;
    Impl* impl_;
};

enum class Act { none, quick_gelu, gelu, gelu_tanh, squared_relu };

void* allocate_aligned(size_t bytes);  // large ones in large pages, of which the processor's tables hold more
void free_aligned(void*, size_t bytes);

template <class T>
struct OnCacheLines {  // an allocator
    using value_type = T;
    OnCacheLines() = default;
    template <class U>
    OnCacheLines(const OnCacheLines<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(allocate_aligned(n * sizeof(T))); }
    void deallocate(T* p, size_t n) { free_aligned(p, n * sizeof(T)); }
    template <class U>
    bool operator==(const OnCacheLines<U>&) const {
        return true;
    }
    template <class U>
    bool operator!=(const OnCacheLines<U>&) const {
        return false;
    }
};

// Rows of activations in the form an INT8 product reads: u8 = round(x / scale) + 128, one scale a row (max |x| / 127).
// Every row is quantized on its own: what a row becomes never depends on its neighbours.
struct QuantRows {
    int64_t rows = 0;
    int width = 0, stride = 0;  // bytes a row, a multiple of 64; padding meets weights of zero
    bool tiles = false;         // 16 rows of 64 bytes lie together, as AMX loads them; else a row does
    std::vector<uint8_t, OnCacheLines<uint8_t>> data;  // whole tiles of 32 rows
    std::vector<float> scale;
    void resize(int64_t rows, int width);
    // Where byte i of a row is.
    size_t at(int64_t row, int i) const {
        if (!tiles) return size_t(row * stride + i);
        return size_t(row / 16 * 16 * stride + i / 64 * 1024 + row % 16 * 64 + i % 64);
    }
};

// y = act(x W + b), W packed at construction; float32 or INT8 as the tensor's type says. Results of a row are the same
// bits whatever other rows are in the call and however many threads run.
class Linear {
  public:
    Linear() = default;
    // Reads prefix.weight (inputs, outputs), optional prefix.weight_scale, optional prefix.bias. `factor` multiplies
    // W and b (used to fold constants such as 1/sqrt(d) or tanh(alpha)); columns [first, first+count) only if count.
    Linear(const Tensors&, const std::string& prefix, int inputs, int outputs, float factor = 1.f, int first = 0,
           int count = 0);
    // From floats, (inputs, outputs) row-major; no bias if empty.
    Linear(const std::vector<float>& weight, const std::vector<float>& bias, int inputs, int outputs);
    int inputs() const, outputs() const;
    bool int8() const;
    // x (rows, inputs) with `ldx` floats from row to row; y (rows, outputs) with `ldy`. With `add`, y += the result.
    void run(Pool&, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, Act act = Act::none,
             bool add = false) const;
    // The same on rows quantized already (int8() only); several layers can share them.
    void run(Pool&, const QuantRows& x, float* y, int64_t ldy, Act act = Act::none, bool add = false) const;

  private:
    struct Packed;
    std::shared_ptr<const Packed> packed_;
};

struct Norm {  // LayerNorm
    std::vector<float> weight, bias;
    float eps = 1e-5f;
    Norm() = default;
    Norm(const Tensors&, const std::string& prefix, int width, float eps);
    void run(Pool&, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy) const;
    void run(Pool&, const float* x, int64_t ldx, int64_t rows, QuantRows& y) const;  // norm and quantize in one pass
};

// Rows to INT8, see QuantRows.
void quantize(Pool&, const float* x, int64_t ldx, int64_t rows, int width, QuantRows& y);

}  // namespace lavila
