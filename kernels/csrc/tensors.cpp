// Named tensors, the error of the last call, and what the CPU offers.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "gemm.h"

namespace lavila {
namespace {

std::string text(const int64_t* shape, size_t rank) {
    std::string out = "(";
    for (size_t i = 0; i < rank; ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + ")";
}

#if defined(__AVX512F__)
bool amx_usable() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22;
    if ((d & kTile) == 0 || (d & kInt8) == 0 || (d & kBf16) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Isa detect() {
#if defined(__AVX512F__)
    Isa best = Isa::avx512;
    if (__builtin_cpu_supports("avx512vnni")) best = amx_usable() ? Isa::amx : Isa::vnni;
#else
    Isa best = Isa::avx2;
#endif
    const char* wish = std::getenv("LAVILA_ISA");
    for (Isa lower : {Isa::avx2, Isa::avx512, Isa::vnni, Isa::amx})
        if (wish && std::strcmp(wish, name(lower)) == 0 && lower < best) best = lower;
    return best;
}

}  // namespace

const char* name(Isa isa) {
    static const char* const names[] = {"avx2", "avx512", "vnni", "amx"};
    return names[int(isa)];
}

Isa isa() {
    static const Isa found = detect();
    return found;
}

namespace {
std::align_val_t alignment(size_t bytes) { return std::align_val_t(bytes < 1 << 20 ? 64 : 2 << 20); }
}  // namespace

void* allocate_aligned(size_t bytes) {
    void* memory = operator new(bytes, alignment(bytes));
    if (bytes >= 1 << 20) madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

void free_aligned(void* memory, size_t bytes) { operator delete(memory, alignment(bytes)); }

std::string& last_error() {
    static thread_local std::string error;
    return error;
}

void require_sizes(const char* of, std::initializer_list<int> sizes) {
    for (const int size : sizes)
        if (size < 1 || size > 1 << 24)
            throw std::runtime_error(std::string(of) + ": a size of " + std::to_string(size) + " makes no sense");
}

bool all_finite(const float* x, int64_t count) {
    constexpr uint32_t kExponent = 0x7f800000;  // all of its bits are set in no finite number
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bad |= uint32_t((bits & kExponent) == kExponent);
    }
    return !bad;
}

Tensors::Tensors(const lv_tensor* tensors, int count) {
    for (int i = 0; i < count; ++i) {
        const lv_tensor& t = tensors[i];
        if (!t.name || t.rank < 0 || t.rank > 4 || t.dtype < LV_F32 || t.dtype > LV_I8)
            throw std::runtime_error("a tensor without a name, of an unknown type or of more than four axes");
        by_name_[t.name] = &t;
    }
}

bool Tensors::has(const std::string& name) const { return by_name_.count(name) != 0; }

const lv_tensor& Tensors::get(const std::string& name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) throw std::runtime_error("tensor '" + name + "' is missing");
    return *found->second;
}

std::vector<float> Tensors::floats(const std::string& name, std::vector<int64_t> shape) const {
    const lv_tensor& t = get(name);
    int64_t size = 1;
    for (int64_t side : shape) size *= side;
    if (t.rank != int(shape.size()) || !std::equal(shape.begin(), shape.end(), t.shape))
        throw std::runtime_error("tensor '" + name + "' has shape " + text(t.shape, size_t(t.rank)) + "; expected " +
                                 text(shape.data(), shape.size()));
    if (t.dtype != LV_F32 && t.dtype != LV_F16)
        throw std::runtime_error("tensor '" + name + "' is of type int8; expected floats");
    std::vector<float> out(static_cast<size_t>(size));
    if (t.dtype == LV_F32)
        std::memcpy(out.data(), t.data, sizeof(float) * out.size());
    else
        for (size_t i = 0; i < out.size(); ++i) out[i] = _cvtsh_ss(static_cast<const uint16_t*>(t.data)[i]);
    if (!all_finite(out.data(), size)) throw std::runtime_error("tensor '" + name + "' holds values that are no numbers");
    return out;
}

}  // namespace lavila

extern "C" {
const char* lv_error(void) { return lavila::last_error().c_str(); }
int lv_version(void) { return 1; }
const char* lv_sources(void) { return LAVILA_SOURCES; }
const char* lv_isa(void) { return lavila::name(lavila::isa()); }
lv_threads* lv_threads_new(int threads) {
    return lavila::guarded([&]() -> lv_threads* { return new lv_threads(threads < 1 ? 1 : threads); });
}
void lv_threads_free(lv_threads* threads) { delete threads; }
}
