// A decoded picture becomes the model's input in one pass: only samples that bilinear taps touch are read and
// converted, a row of the picture once for all output rows that need it.
//
// For every output of a row the two neighbouring lumas and chroma samples are collected as pairs; then, on whole
// vectors, both are converted to RGB and mixed. A converted row is 3 lines of `wide` floats, on the scale 0..255.
// Sums and products are those of numpy in video/transforms.py, in its order, so that both give the same bits.
#include "preprocess.h"

#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "gemm.h"

namespace lavila {
namespace {

struct Job {
    const lv_picture& of;
    const lv_window& in;
    int64_t wide, chroma_rows, chroma_columns;
    int32_t first, last;            // chroma columns that are needed
    int32_t *low, *chroma;          // (wide): luma and chroma column of a pair's left
    uint16_t *second_l, *second_r;  // (wide): all ones where the left (right) luma's chroma is the second of its pair
    uint16_t *y_l, *y_r, *u, *v;    // (wide): lumas (in y_l both, a byte each, if 8 bits), pairs of chroma
    uint16_t* mixed;                // (2 · chroma columns + 2)
    uint8_t* smoothed;              // (2 · chroma columns)
    uint32_t* both;                 // (wide)
    float *weight, *rest, *lines[2];  // (wide), (wide), (3, wide)

    Job(const lv_picture& picture, const lv_window& window, uint8_t* memory);
};

int64_t wide_of(const lv_window& in) { return round_up(in.size, kBlockOf); }

template <class T>
T* carve(uint8_t*& at, int64_t count) {
    T* const begin = reinterpret_cast<T*>(at);
    at += round_up(count * int64_t(sizeof(T)), 64);
    return begin;
}

Job::Job(const lv_picture& picture, const lv_window& window, uint8_t* at)
    : of(picture), in(window), wide(wide_of(window)), chroma_rows((of.height + 1) / 2),
      chroma_columns((of.width + 1) / 2) {
    low = carve<int32_t>(at, wide), chroma = carve<int32_t>(at, wide);
    for (uint16_t** line : {&second_l, &second_r, &y_l, &y_r, &u, &v}) *line = carve<uint16_t>(at, wide);
    mixed = carve<uint16_t>(at, 2 * chroma_columns + 2), smoothed = carve<uint8_t>(at, 2 * chroma_columns);
    both = carve<uint32_t>(at, wide);
    weight = carve<float>(at, wide), rest = carve<float>(at, wide);
    for (float*& line : lines) line = carve<float>(at, 3 * wide);
    for (int64_t i = 0; i < wide; ++i) {
        const int64_t from = std::min<int64_t>(i, in.size - 1);
        const int32_t x = in.low_x[from], left = x / 2, pair = std::min(left, int32_t(chroma_columns) - 2);
        low[i] = x, chroma[i] = pair, weight[i] = in.weight_x[from], rest[i] = in.rest_x[from];
        second_l[i] = left > pair ? 0xffff : 0, second_r[i] = (x + 1) / 2 > pair ? 0xffff : 0;
    }
    const auto ends = std::minmax_element(chroma, chroma + wide);
    first = *ends.first, last = *ends.second + 1;
}

// A thread's working memory, kept from call to call.
uint8_t* memory_for(const lv_picture& of, const lv_window& in) {
    static thread_local Aligned<uint8_t> memory;
    memory.resize(size_t(wide_of(in) * (3 * 4 + 6 * 2 + 2 * 4 + 2 * 3 * 4) + (of.width + 3) / 2 * 6 + 16 * 64));
    return memory.data();
}

void collect(const uint8_t* row, const int32_t* at, int64_t wide, uint16_t* pairs) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < wide; ++i) std::memcpy(pairs + i, row + at[i], 2);
}

// U and V alternate: four bytes hold both of two columns.
void collect(const uint8_t* row, const int32_t* at, int64_t wide, uint32_t* __restrict both, uint16_t* __restrict u,
             uint16_t* __restrict v) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < wide; ++i) std::memcpy(both + i, row + 2 * at[i], 4);
    for (int64_t i = 0; i < wide; ++i) {
        u[i] = uint16_t((both[i] & 0xff) | (both[i] >> 8 & 0xff00));
        v[i] = uint16_t((both[i] >> 8 & 0xff) | (both[i] >> 16 & 0xff00));
    }
}

void collect(const uint16_t* row, const int32_t* at, int64_t wide, uint16_t* left, uint16_t* right) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < wide; ++i) left[i] = row[at[i]], right[i] = row[at[i] + 1];
}

// Chroma for one row: between two rows of its plane, between columns where it sits at the left, 8 bits. From one column
// to the next it is `step` samples.
template <class Lie>
void smooth(const Job& job, const uint8_t* near_row, const uint8_t* far_row, int step, uint8_t* __restrict out) {
    typedef typename Lie::Sample Sample;
    const auto* const near = reinterpret_cast<const Sample*>(near_row);
    const auto* const far = reinterpret_cast<const Sample*>(far_row);
    const int next = job.of.left ? step : 0;
    const int64_t begin = job.first * step, end = (job.last + 1) * step;
    const int64_t known = std::min(end + step, job.chroma_columns * step);
    uint16_t* __restrict const mixed = job.mixed;
    for (int64_t i = begin; i < known; ++i) {
        const uint16_t a = uint16_t(near[i] >> Lie::shift), b = uint16_t(far[i] >> Lie::shift);
        mixed[i] = uint16_t(3 * a + b);
    }
    for (int64_t i = known; i < end + step; ++i) mixed[i] = mixed[i - step];
    for (int64_t i = begin; i < end; ++i) {
        const uint16_t sum = uint16_t(3 * mixed[i] + mixed[i + next] + (8 << Lie::extra));
        const uint16_t value = uint16_t(sum >> (4 + Lie::extra));
        out[i] = uint8_t(value < 255 ? value : 255);
    }
}

// Pairs of smooth chroma.
template <class Lie>
void collect_smooth(const Job& job, int64_t y) {
    const lv_picture& of = job.of;
    const int64_t near = y / 2, far = std::clamp<int64_t>(near + (y % 2 ? 1 : -1), 0, job.chroma_rows - 1);
    for (int plane = 1; plane < (of.paired ? 2 : 3); ++plane) {
        const uint8_t* const rows = of.plane[plane];
        const int64_t stride = of.stride[plane];
        smooth<Lie>(job, rows + near * stride, rows + far * stride, of.paired ? 2 : 1, job.smoothed);
        if (!of.paired) collect(job.smoothed, job.chroma, job.wide, plane == 1 ? job.u : job.v);
    }
    if (of.paired) collect(job.smoothed, job.chroma, job.wide, job.both, job.u, job.v);
}

inline uint16_t pick(uint16_t pair, uint16_t second) {
    return uint16_t((second & (pair >> 8)) | (~second & pair & 255));
}

// Both neighbours of every output to RGB, and between them by weight. 8-bit lumas come in pairs, others alone.
template <class Convert, class Lie>
void mix(const Job& job, const Convert& convert, float* line) {
    const auto rounded = [](uint16_t luma) {
        const uint16_t sum = uint16_t((luma >> Lie::shift) + (1 << Lie::extra >> 1));
        return uint16_t(sum >> Lie::extra);
    };
    for (int64_t begin = 0; begin < job.wide; begin += kBlockOf) {
        const uint16_t *yl = job.y_l + begin, *yr = job.y_r + begin, *us = job.u + begin, *vs = job.v + begin;
        const uint16_t *second_l = job.second_l + begin, *second_r = job.second_r + begin;
        int16_t left[3][kBlockOf], right[3][kBlockOf];
        for (int i = 0; i < kBlockOf; ++i) {
            const uint16_t luma = Lie::extra ? rounded(yl[i]) : uint16_t(yl[i] & 255);
            convert(luma, pick(us[i], second_l[i]), pick(vs[i], second_l[i]), left[0][i], left[1][i], left[2][i]);
        }
        for (int i = 0; i < kBlockOf; ++i) {
            const uint16_t luma = Lie::extra ? rounded(yr[i]) : uint16_t(yl[i] >> 8);
            convert(luma, pick(us[i], second_r[i]), pick(vs[i], second_r[i]), right[0][i], right[1][i], right[2][i]);
        }
        for (int c = 0; c < 3; ++c)
            for (int i = 0; i < kBlockOf; ++i)
                line[c * job.wide + begin + i] =
                    job.rest[begin + i] * float(left[c][i]) + job.weight[begin + i] * float(right[c][i]);
    }
}

template <class Convert, class Lie>
void convert_row(const Job& job, int64_t y, float* line) {
    const lv_picture& of = job.of;
    if constexpr (std::is_same_v<Convert, Table>) {
        collect_smooth<Lie>(job, y);
    } else {
        collect(of.plane[1] + y / 2 * of.stride[1], job.chroma, job.wide, job.u);
        collect(of.plane[2] + y / 2 * of.stride[2], job.chroma, job.wide, job.v);
    }
    const auto* const luma = reinterpret_cast<const typename Lie::Sample*>(of.plane[0] + y * of.stride[0]);
    if constexpr (Lie::extra)
        collect(luma, job.low, job.wide, job.y_l, job.y_r);
    else
        collect(luma, job.low, job.wide, job.y_l);
    mix<Convert, Lie>(job, Convert(of.colours), line);
}

// x / by, rounded as a division rounds (Markstein), without dividing.
inline float divided(float x, float by, float inverse) {
    const float near = x * inverse;
    return __builtin_fmaf(__builtin_fmaf(-near, by, x), inverse, near);
}

// What becomes of the values of an output row, mixed from two lines by weight: normalised, a channel after the other.
struct Normal {
    float* out;
    void operator()(const Job& job, int64_t y, const float* above, const float* below) const {
        const lv_window& in = job.in;
        const int64_t size = in.size;
        const float weight = in.weight_y[y], rest = in.rest_y[y];
        for (int c = 0; c < 3; ++c) {
            float* const to = out + (c * size + y) * size;
            const float *a = above + c * job.wide, *b = below + c * job.wide, mean = in.mean[c], std = in.std[c];
            const float inverse = 1.f / std;
            for (int64_t x = 0; x < size; ++x) to[x] = divided(rest * a[x] + weight * b[x] - mean, std, inverse);
        }
    }
};

// The same as whole levels, pixel by pixel; halves go to the even one.
struct Levels {
    uint8_t* out;
    void operator()(const Job& job, int64_t y, const float* above, const float* below) const {
        const int64_t size = job.in.size;
        const float weight = job.in.weight_y[y], rest = job.in.rest_y[y];
        for (int64_t begin = 0; begin < size; begin += kBlockOf) {
            uint8_t levels[3][kBlockOf];
            for (int c = 0; c < 3; ++c) {
                const float *a = above + c * job.wide + begin, *b = below + c * job.wide + begin;
                for (int i = 0; i < kBlockOf; ++i)
                    levels[c][i] = uint8_t(int32_t(__builtin_rintf(rest * a[i] + weight * b[i])));
            }
            uint8_t* const to = out + 3 * (y * size + begin);
            const int64_t count = std::min<int64_t>(kBlockOf, size - begin);
            for (int64_t i = 0; i < count; ++i)
                for (int c = 0; c < 3; ++c) to[3 * i + c] = levels[c][i];
        }
    }
};

template <class Convert, class Lie, class Put>
void run(const Job& job, const Put& put) {
    const lv_window& in = job.in;
    int32_t held[2] = {-1, -1};
    const auto line_of = [&](int32_t y) {
        float* const line = job.lines[y & 1];
        if (held[y & 1] != y) convert_row<Convert, Lie>(job, y, line), held[y & 1] = y;
        return line;
    };
    for (int64_t y = 0; y < in.size; ++y) {
        const float* const above = line_of(in.low_y[y]);
        put(job, y, above, line_of(in.low_y[y] + 1));
    }
}

template <class Put>
void run(const Job& job, const Put& put) {
    if (job.of.bits > 8) return job.of.shift ? run<Table, TenAbove>(job, put) : run<Table, Ten>(job, put);
    return job.of.colours[0] ? run<Table, Eight>(job, put) : run<Floors, Eight>(job, put);
}

// Nothing is read that the caller did not say is there.
void check(const lv_picture& of, const lv_window& in) {
    const auto refuse = [](const char* why) { throw std::runtime_error(why); };
    const bool deep = of.bits > 8;
    if (of.width < 3 || of.height < 2 || in.size < 1) refuse("the picture is too small to resize");
    if (of.bits != (deep ? 10 : 8) || (of.shift != 0 && !(deep && of.shift == 6)))
        refuse("samples of 8 or 10 bits are needed");
    if (of.colours[0] == 0 && (deep || of.paired)) refuse("only 8-bit planes of their own convert without a table");
    if (of.colours[0] != 0 && (of.colours[1] < 65536 || of.colours[1] >= 98304)) refuse("a slope of 1 to 1.5 is needed");
    const int64_t columns = (of.width + 1) / 2, rows = (of.height + 1) / 2;
    for (int i = 0; i < (of.paired ? 2 : 3); ++i) {
        const int64_t line = (i == 0 ? of.width : of.paired ? 2 * columns : columns) * (deep ? 2 : 1);
        const int64_t lines = i == 0 ? of.height : rows;
        if (of.plane[i] == nullptr || of.stride[i] < line || of.bytes[i] < (lines - 1) * of.stride[i] + line)
            refuse("a plane of the picture is shorter than its size says");
        if (deep && (reinterpret_cast<uintptr_t>(of.plane[i]) | uintptr_t(of.stride[i])) % 2)
            refuse("samples of two bytes lie at odd addresses");
    }
    for (int32_t i = 0; i < in.size; ++i)
        if (in.low_x[i] < 0 || in.low_x[i] > of.width - 2 || in.low_y[i] < 0 || in.low_y[i] > of.height - 2)
            refuse("the window reaches out of the picture");
}

}  // namespace
}  // namespace lavila

extern "C" int lv_preprocess(const lv_picture* of, const lv_window* in, float* out) {
    return lavila::guarded([&] {
        lavila::check(*of, *in);
        lavila::run(lavila::Job(*of, *in, lavila::memory_for(*of, *in)), lavila::Normal{out});
        return 1;
    }) - 1;
}

extern "C" int lv_preprocess_levels(const lv_picture* of, const lv_window* in, uint8_t* out) {
    return lavila::guarded([&] {
        lavila::check(*of, *in);
        lavila::run(lavila::Job(*of, *in, lavila::memory_for(*of, *in)), lavila::Levels{out});
        return 1;
    }) - 1;
}
