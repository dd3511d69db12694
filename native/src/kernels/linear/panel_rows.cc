#include "kernels/linear/panel_rows.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/linear/linear.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace margay {
namespace {

constexpr size_t kGroup = 4;  // codes that share two words of a row

// Words [first, words) one by one.
void PlainWords(const std::byte* rows, size_t count, size_t words, size_t first, std::byte* panel) {
  for (; first < words; ++first) {
    for (size_t lane = 0; lane < count; ++lane) std::memcpy(panel + (first * kPanel + lane) * 4, rows + (lane * words + first) * 4, 4);
  }
}

// Codes [first, codes), a multiple of four at `first`.
void PlainFp8(const std::byte* rows, size_t count, size_t codes, size_t first, std::byte* panel) {
  for (; first < codes; first += kGroup) {
    for (size_t lane = 0; lane < count; ++lane) {
      std::byte four[kGroup] = {};
      std::memcpy(four, rows + lane * codes + first, std::min(kGroup, codes - first));
      const std::byte even[2] = {four[0], four[2]}, odd[2] = {four[1], four[3]};
      std::byte* to = panel + first * kPanel + lane * 2;
      std::memcpy(to, even, 2);
      std::memcpy(to + kPanel * 2, odd, 2);
    }
  }
}

#if defined(__SSE2__)

__m128i Load(const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
void Store(std::byte* to, __m128i value) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), value); }

// Four words of four rows: the rows' n-th words become r[n].
void Transpose(__m128i (&r)[4]) {
  const __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpackhi_epi32(r[0], r[1]);
  const __m128i c = _mm_unpacklo_epi32(r[2], r[3]), d = _mm_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm_unpacklo_epi64(a, c);
  r[1] = _mm_unpackhi_epi64(a, c);
  r[2] = _mm_unpacklo_epi64(b, d);
  r[3] = _mm_unpackhi_epi64(b, d);
}

// Eight halves of eight rows, likewise.
void Transpose(__m128i (&r)[8]) {
  __m128i low[4], high[4];
  for (int i = 0; i < 4; ++i) {
    low[i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    high[i] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
  Transpose(low);
  Transpose(high);
  for (int i = 0; i < 4; ++i) {
    r[i] = low[i];
    r[4 + i] = high[i];
  }
}

// Bytes 0, 2, 4, ... and then 1, 3, 5, ...: of each of four groups one half, and then the other.
__m128i SplitPairs(__m128i codes) {
  return _mm_packus_epi16(_mm_and_si128(codes, _mm_set1_epi16(0xff)), _mm_srli_epi16(codes, 8));
}

size_t FastWords(const std::byte* rows, size_t words, std::byte* panel) {
  constexpr size_t kAtOnce = 4;
  size_t first = 0;
  for (; first + kAtOnce <= words; first += kAtOnce) {
    for (size_t lane = 0; lane < kPanel; lane += kAtOnce) {
      __m128i r[kAtOnce];
      for (size_t i = 0; i < kAtOnce; ++i) r[i] = Load(rows + ((lane + i) * words + first) * 4);
      Transpose(r);
      for (size_t i = 0; i < kAtOnce; ++i) Store(panel + ((first + i) * kPanel + lane) * 4, r[i]);
    }
  }
  _mm_sfence();
  return first;
}

size_t FastFp8(const std::byte* rows, size_t codes, std::byte* panel) {
  constexpr size_t kAtOnce = 16;
  size_t first = 0;
  for (; first + kAtOnce <= codes; first += kAtOnce) {
    for (size_t lane = 0; lane < kPanel; lane += 8) {
      __m128i r[8];
      for (size_t i = 0; i < 8; ++i) r[i] = SplitPairs(Load(rows + (lane + i) * codes + first));
      Transpose(r);
      for (size_t group = 0; group < 4; ++group) {
        std::byte* to = panel + (first + group * kGroup) * kPanel + lane * 2;
        Store(to, r[group]);
        Store(to + kPanel * 2, r[4 + group]);
      }
    }
  }
  _mm_sfence();
  return first;
}

#else

size_t FastWords(const std::byte*, size_t, std::byte*) { return 0; }
size_t FastFp8(const std::byte*, size_t, std::byte*) { return 0; }

#endif

}  // namespace

void InterleaveWords(const std::byte* rows, size_t count, size_t words, std::byte* panel) {
  PlainWords(rows, count, words, count == kPanel ? FastWords(rows, words, panel) : 0, panel);
}

void InterleaveFp8(const std::byte* rows, size_t count, size_t codes, std::byte* panel) {
  PlainFp8(rows, count, codes, count == kPanel ? FastFp8(rows, codes, panel) : 0, panel);
}

}  // namespace margay
