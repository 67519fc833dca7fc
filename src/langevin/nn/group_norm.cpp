// Group norm (Wu & He 2018) of feature maps in bfloat16 whose channels lie beside each other, and a SiLU behind it, in
// two passes over memory: one for the moments, one that reads and writes. Moments are sums of distances from the first
// pixel, in float32 over some pixels and in float64 over all, so that a great mean takes no digits from the variance.

#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "power.h"

namespace {

constexpr int WIDTH = 16;
constexpr long SOME = 256;  // pixels that are summed in float32

inline __m512 wide(const uint16_t* x) {
  const __m256i found = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(found), 16));
}

inline void narrow(uint16_t* out, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(x));
}

inline __m512 silu(__m512 x) {
  const __m512 fall = power(_mm512_mul_ps(x, _mm512_set1_ps(-1.4426950408889634f)));  // e^-x
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), fall));
}

// Adds the sums of x - x0 and of its square over pixels `first` to `last` to `sums` (2, channels).
void moments(const uint16_t* x, long first, long last, long channels, double* sums) {
  for (long begin = first; begin < last; begin += SOME) {
    const long end = std::min(last, begin + SOME);
    for (long c = 0; c < channels; c += WIDTH) {
      const __m512 origin = wide(x + c);
      __m512 sum = _mm512_setzero_ps(), square = sum;
      for (long pixel = begin; pixel < end; ++pixel) {
        const __m512 apart = _mm512_sub_ps(wide(x + pixel * channels + c), origin);
        sum = _mm512_add_ps(sum, apart);
        square = _mm512_fmadd_ps(apart, apart, square);
      }
      alignas(64) float one[WIDTH], two[WIDTH];
      _mm512_store_ps(one, sum), _mm512_store_ps(two, square);
      for (int k = 0; k < WIDTH; ++k) sums[c + k] += one[k], sums[channels + c + k] += two[k];
    }
  }
}

// Turns the moments of all threads into what every channel is multiplied by and what is added to it then.
void factors(const uint16_t* x, const std::vector<double>& sums, const uint16_t* weight, const uint16_t* bias,
             long pixels, long channels, long groups, float eps, long threads, float* factor) {
  auto number = [](uint16_t bits) {
    union { uint32_t bits; float number; } both = {static_cast<uint32_t>(bits) << 16};
    return static_cast<double>(both.number);
  };
  const long size = channels / groups;
  for (long group = 0; group < groups; ++group) {
    double mean = 0, variance = 0;
    std::vector<double> means(size), spreads(size);
    for (long k = 0; k < size; ++k) {
      const long c = group * size + k;
      double sum = 0, square = 0;
      for (long t = 0; t < threads; ++t) sum += sums[2 * t * channels + c], square += sums[(2 * t + 1) * channels + c];
      means[k] = number(x[c]) + sum / pixels;
      spreads[k] = square / pixels - sum / pixels * (sum / pixels);
      mean += means[k] / size;
    }
    for (long k = 0; k < size; ++k) variance += (spreads[k] + (means[k] - mean) * (means[k] - mean)) / size;
    const double inverse = 1 / std::sqrt(std::max(variance, 0.0) + eps);
    for (long k = 0; k < size; ++k) {
      const long c = group * size + k;
      factor[c] = inverse * number(weight[c]);
      factor[channels + c] = number(bias[c]) - mean * inverse * number(weight[c]);
    }
  }
}

template <bool activated>
void apply(const uint16_t* x, uint16_t* out, long first, long last, long channels, const float* factor) {
  for (long pixel = first; pixel < last; ++pixel)
    for (long c = 0; c < channels; c += WIDTH) {
      const __m512 found = wide(x + pixel * channels + c);
      const __m512 y = _mm512_fmadd_ps(found, _mm512_loadu_ps(factor + c), _mm512_loadu_ps(factor + channels + c));
      narrow(out + pixel * channels + c, activated ? silu(y) : y);
    }
}

}  // namespace

// Returns 0, or 1 where there is no memory. x and out are (batch, pixels, channels), channels a multiple of 16.
extern "C" int group_norm(const uint16_t* x, uint16_t* out, const uint16_t* weight, const uint16_t* bias, long batch,
                          long pixels, long channels, long groups, float eps, int activated, int threads) {
  try {
    std::vector<double> sums(2 * channels * threads);
    std::vector<float> factor(2 * channels);
    for (long b = 0; b < batch; ++b, x += pixels * channels, out += pixels * channels) {
      std::fill(sums.begin(), sums.end(), 0.0);
#pragma omp parallel for num_threads(threads) schedule(static)
      for (long t = 0; t < threads; ++t)
        moments(x, pixels * t / threads, pixels * (t + 1) / threads, channels, sums.data() + 2 * t * channels);
      factors(x, sums, weight, bias, pixels, channels, groups, eps, threads, factor.data());
#pragma omp parallel for num_threads(threads) schedule(static)
      for (long t = 0; t < threads; ++t) {
        const long first = pixels * t / threads, last = pixels * (t + 1) / threads;
        if (activated)
          apply<true>(x, out, first, last, channels, factor.data());
        else
          apply<false>(x, out, first, last, channels, factor.data());
      }
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
