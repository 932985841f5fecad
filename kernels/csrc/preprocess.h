// Conversion of YUV to RGB, bit for bit as preprocess/reference.py states it, on blocks that the compiler turns into
// vectors: whole numbers of 16 bits wherever they suffice.
#pragma once
#include <cstdint>

#include "lavila.h"

namespace lavila {

constexpr int kBlockOf = 32;  // outputs converted at once

// How samples lie: their type, the bits below them, and how many more than 8 they are.
struct Eight {
    typedef uint8_t Sample;
    static constexpr int shift = 0, extra = 0;
};
struct Ten {
    typedef uint16_t Sample;
    static constexpr int shift = 0, extra = 2;
};
struct TenAbove {
    typedef uint16_t Sample;
    static constexpr int shift = 6, extra = 2;
};

// The high half of a product, one instruction for 16 bits.
inline int16_t high(int16_t a, int16_t b) { return int16_t((int32_t(a) * b) >> 16); }
inline uint16_t high(uint16_t a, uint16_t b) { return uint16_t((uint32_t(a) * b) >> 16); }
inline int16_t clip(int16_t x) { return int16_t(x < 0 ? 0 : x > 255 ? 255 : x); }

// Every product rounded down: reference.py's `_floors`.
struct Floors {
    int16_t y, y0, vr, ug, vg, ub;
    explicit Floors(const int32_t* k)
        : y(int16_t(k[1])), y0(int16_t(k[2])), vr(int16_t(k[3])), ug(int16_t(k[4])), vg(int16_t(k[5])),
          ub(int16_t(k[6])) {}
    void operator()(uint16_t luma, uint16_t from_u, uint16_t from_v, int16_t& r, int16_t& g, int16_t& b) const {
        const int16_t level = high(int16_t(luma * 8 - y0), y);
        const int16_t u = int16_t(from_u * 8 - 1024), v = int16_t(from_v * 8 - 1024);
        r = clip(int16_t(level + high(v, vr)));
        g = clip(int16_t(level + high(u, ug) + high(v, vg)));
        b = clip(int16_t(level + high(u, ub)));
    }
};

// Chroma moves the luma by whole numbers, then one linear table: reference.py's `_table`.
struct Table {
    struct Factor {  // c · factor >> 16, the factor in two halves
        int16_t whole, zero;
        uint16_t part;
        explicit Factor(int32_t f) : whole(int16_t(f >> 16)), zero(int16_t(f >> 9)), part(uint16_t(f & 0xffff)) {}
        int16_t operator()(uint16_t c) const { return int16_t(uint16_t(c * whole) + high(c, part) - zero); }
    };
    int16_t part, y0_high;  // luma · y + y0 >> 16, where y is 65536 + part
    uint16_t y0_low;
    Factor vr, ug, vg, ub;
    explicit Table(const int32_t* k)
        : part(int16_t(k[1] - 65536)), y0_high(int16_t(k[2] >> 16)), y0_low(uint16_t(k[2] & 0xffff)), vr(k[3]),
          ug(k[4]), vg(k[5]), ub(k[6]) {}
    int16_t at(int16_t moved) const {
        const uint16_t low = uint16_t(moved * part), sum = uint16_t(low + y0_low);
        return clip(int16_t(moved + high(moved, part) + y0_high + (sum < low)));
    }
    void operator()(uint16_t luma, uint16_t u, uint16_t v, int16_t& r, int16_t& g, int16_t& b) const {
        r = at(int16_t(luma + vr(v)));
        g = at(int16_t(luma + ug(u) + vg(v)));
        b = at(int16_t(luma + ub(u)));
    }
};

}  // namespace lavila
