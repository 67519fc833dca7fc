// Exponentials of 16 numbers at once.

#pragma once

#include <immintrin.h>

// 2^x within 4e-6 of it: 2^floor(x) times a polynomial of the rest.
inline __m512 power(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, 0x09);
  __m512 found = _mm512_set1_ps(1.3534167e-2f);
  found = _mm512_fmadd_ps(found, rest, _mm512_set1_ps(5.2011464e-2f));
  found = _mm512_fmadd_ps(found, rest, _mm512_set1_ps(2.4144275e-1f));
  found = _mm512_fmadd_ps(found, rest, _mm512_set1_ps(6.9300383e-1f));
  found = _mm512_fmadd_ps(found, rest, _mm512_set1_ps(1.0000026f));
  return _mm512_scalef_ps(found, x);
}
