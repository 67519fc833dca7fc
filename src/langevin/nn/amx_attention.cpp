// Attention on CPUs with AMX: softmax(scale q k^T + mask) v in bfloat16, with scores and sums in float32.
//
// Blocks of queries meet blocks of keys as in FlashAttention (Dao et al. 2022): scores of 32 queries and KEYS keys come
// from tiles of the processor, their exponentials are taken 16 at a time, and tiles add the products with the values.
// The greatest score of a query is followed as keys go by; what was summed is scaled down only when it has grown by
// more than a factor of 2^8, which float32 has room for.

#include <immintrin.h>
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "power.h"

namespace {

constexpr int ROWS = 32, KEYS = 256, TILE = 16, PAIRS = 32;
constexpr float SLACK = 8.0f;
constexpr float LOG2E = 1.4426950408889634f;

struct Shape {
  long batch, heads, queries, keys, size;
};
struct Steps {
  long batch, head, row;
};

long up(long n, long to) { return (n + to - 1) / to * to; }

struct alignas(64) Palette {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

void configure() {
  Palette palette;
  for (int tile = 0; tile < 8; ++tile) palette.bytes[tile] = 64, palette.rows[tile] = 16;
  _tile_loadconfig(&palette);
}

// Pairs of neighbouring channels of 16 keys beside each other, 32 channels a tile: (keys / 16, size / 32, 16, 16, 2).
void pack_keys(const uint16_t* k, long step, long keys, long size, long wide, uint16_t* out) {
  for (long first = 0; first < up(keys, PAIRS); first += TILE)
    for (long channel = 0; channel < wide; channel += PAIRS)
      for (int pair = 0; pair < 16; ++pair)
        for (int key = 0; key < TILE; ++key, out += 2)
          for (int side = 0; side < 2; ++side) {
            long c = channel + 2 * pair + side;
            out[side] = first + key < keys && c < size ? k[(first + key) * step + c] : 0;
          }
}

// Pairs of neighbouring keys beside each other, 16 channels to a tile: (keys / 32, size / 16, 16, 16, 2).
void pack_values(const uint16_t* v, long step, long keys, long size, long wide, uint16_t* out) {
  for (long first = 0; first < up(keys, PAIRS); first += PAIRS)
    for (long channel = 0; channel < wide; channel += TILE)
      for (int pair = 0; pair < 16; ++pair)
        for (int c = 0; c < TILE; ++c, out += 2)
          for (int side = 0; side < 2; ++side) {
            long key = first + 2 * pair + side;
            out[side] = key < keys && channel + c < size ? v[key * step + channel + c] : 0;
          }
}

struct Scratch {
  alignas(64) float scores[ROWS * KEYS];
  alignas(64) uint16_t weights[ROWS * KEYS];
  alignas(64) float greatest[ROWS], total[ROWS], bias[KEYS];
};

// Scores of 32 queries with `count` keys, a multiple of 32.
void score(const uint16_t* q, const uint16_t* k, long wide, long count, float* scores) {
  const long row = wide * 2, tile = 16 * 32;  // bytes of a query, elements of a tile
  const long block = wide / PAIRS * tile;
  for (long key = 0; key < count; key += 2 * TILE) {
    const uint16_t* near = k + key / TILE * block;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long part = 0; part < wide / PAIRS; ++part) {
      _tile_loadd(4, q + part * PAIRS, row);
      _tile_loadd(5, q + 16 * wide + part * PAIRS, row);
      _tile_loadd(6, near + part * tile, 64);
      _tile_loadd(7, near + block + part * tile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, scores + key, KEYS * 4);
    _tile_stored(1, scores + key + TILE, KEYS * 4);
    _tile_stored(2, scores + 16 * KEYS + key, KEYS * 4);
    _tile_stored(3, scores + 16 * KEYS + key + TILE, KEYS * 4);
  }
}

// Turns scores into powers, and returns whether a greatest score grew, by which sums and `out` were scaled down.
template <bool biased>
void weigh(Scratch& s, long count, float scale, float* out, long wide) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int row = 0; row < ROWS; ++row) {
    const float* scores = s.scores + row * KEYS;
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), more = most;
    for (long key = 0; key < count; key += 32) {
      __m512 a = _mm512_load_ps(scores + key), b = _mm512_load_ps(scores + key + 16);
      if (biased) {
        a = _mm512_fmadd_ps(a, factor, _mm512_load_ps(s.bias + key));
        b = _mm512_fmadd_ps(b, factor, _mm512_load_ps(s.bias + key + 16));
      }
      most = _mm512_max_ps(most, a), more = _mm512_max_ps(more, b);
    }
    float here = _mm512_reduce_max_ps(_mm512_max_ps(most, more)) * (biased ? 1.0f : scale);
    if (here > s.greatest[row] + SLACK || s.greatest[row] == -std::numeric_limits<float>::infinity()) {
      if (s.greatest[row] != -std::numeric_limits<float>::infinity()) {
        const __m512 less = power(_mm512_set1_ps(s.greatest[row] - here));
        s.total[row] *= _mm512_cvtss_f32(less);
        for (long c = 0; c < wide; c += TILE)
          _mm512_store_ps(out + row * wide + c, _mm512_mul_ps(_mm512_load_ps(out + row * wide + c), less));
      }
      s.greatest[row] = here;
    }
    // Where nothing was seen yet every power of what is hidden is 0, and not that of a difference of infinities.
    const float low = s.greatest[row] == -std::numeric_limits<float>::infinity() ? 0.0f : s.greatest[row];
    const __m512 base = _mm512_set1_ps(-low);
    __m512 sum = _mm512_setzero_ps(), also = sum;
    for (long key = 0; key < count; key += 32) {
      __m512 a = _mm512_load_ps(scores + key), b = _mm512_load_ps(scores + key + 16);
      if (biased) {
        a = _mm512_add_ps(_mm512_fmadd_ps(a, factor, _mm512_load_ps(s.bias + key)), base);
        b = _mm512_add_ps(_mm512_fmadd_ps(b, factor, _mm512_load_ps(s.bias + key + 16)), base);
        const __m512 least = _mm512_set1_ps(-1e4f);
        a = _mm512_max_ps(least, a), b = _mm512_max_ps(least, b);  // in this order, which keeps what is no number
      } else {
        a = _mm512_fmadd_ps(a, factor, base), b = _mm512_fmadd_ps(b, factor, base);
      }
      a = power(a), b = power(b);
      sum = _mm512_add_ps(sum, a), also = _mm512_add_ps(also, b);
      _mm512_store_si512(s.weights + row * KEYS + key, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    s.total[row] += _mm512_reduce_add_ps(_mm512_add_ps(sum, also));
  }
}

// Adds the weighted values of `count` keys to `out` (32, wide).
void gather(const uint16_t* weights, const uint16_t* v, long wide, long count, float* out) {
  const long block = wide / TILE * 16 * 32;
  for (long channel = 0; channel < wide; channel += 2 * TILE) {
    const bool two = channel + TILE < wide;
    const uint16_t* near = v + channel / TILE * 16 * 32;
    _tile_loadd(0, out + channel, wide * 4);
    _tile_loadd(2, out + 16 * wide + channel, wide * 4);
    if (two) {
      _tile_loadd(1, out + channel + TILE, wide * 4);
      _tile_loadd(3, out + 16 * wide + channel + TILE, wide * 4);
    }
    for (long key = 0; key < count; key += PAIRS, near += block) {
      _tile_loadd(4, weights + key, KEYS * 2);
      _tile_loadd(5, weights + 16 * KEYS + key, KEYS * 2);
      _tile_loadd(6, near, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      if (two) {
        _tile_loadd(7, near + 16 * 32, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out + channel, wide * 4);
    _tile_stored(2, out + 16 * wide + channel, wide * 4);
    if (two) {
      _tile_stored(1, out + channel + TILE, wide * 4);
      _tile_stored(3, out + 16 * wide + channel + TILE, wide * 4);
    }
  }
}

}  // namespace

// Returns 0, or 1 where there is no memory. Sizes and steps are in elements; channels lie beside each other. `mask`
// holds a number for every key that is added to its scores, for every row of the batch `mask_step` further on, or is
// null.
extern "C" int amx_attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, const float* mask,
                             const Shape* shape, const Steps* qs, const Steps* ks, const Steps* vs, const Steps* os,
                             long mask_step, float scale, int threads) {
  const long pairs = shape->batch * shape->heads, keys = up(shape->keys, PAIRS), size = shape->size;
  const long reads = up(size, PAIRS), writes = up(size, TILE);
  const long blocks = (shape->queries + ROWS - 1) / ROWS;
  uint16_t* packed = static_cast<uint16_t*>(std::aligned_alloc(64, up(pairs * keys * (reads + writes) * 2, 64)));
  if (!packed) return 1;
  int failed = 0;
#pragma omp parallel num_threads(threads)
  {
    configure();
    Scratch* s = static_cast<Scratch*>(std::aligned_alloc(64, up(sizeof(Scratch), 64)));
    float* sums = static_cast<float*>(std::aligned_alloc(64, ROWS * writes * 4));
    uint16_t* rows = static_cast<uint16_t*>(std::aligned_alloc(64, ROWS * reads * 2));
    const bool able = s && sums && rows;
#pragma omp for schedule(static)
    for (long pair = 0; pair < pairs; ++pair) {
      const long b = pair / shape->heads, h = pair % shape->heads;
      uint16_t* place = packed + pair * keys * (reads + writes);
      pack_keys(k + b * ks->batch + h * ks->head, ks->row, shape->keys, size, reads, place);
      pack_values(v + b * vs->batch + h * vs->head, vs->row, shape->keys, size, writes, place + keys * reads);
    }
#pragma omp for schedule(static)
    for (long block = 0; block < pairs * blocks; ++block) {
      if (!able) {
        failed = 1;
        continue;
      }
      const long pair = block / blocks, b = pair / shape->heads, h = pair % shape->heads;
      const long first = block % blocks * ROWS, count = std::min<long>(ROWS, shape->queries - first);
      const uint16_t* near = packed + pair * keys * (reads + writes);
      std::memset(rows, 0, ROWS * reads * 2);
      for (long row = 0; row < count; ++row)
        std::memcpy(rows + row * reads, q + b * qs->batch + h * qs->head + (first + row) * qs->row, size * 2);
      std::memset(sums, 0, ROWS * writes * 4);
      std::fill(s->greatest, s->greatest + ROWS, -std::numeric_limits<float>::infinity());
      std::fill(s->total, s->total + ROWS, 0.0f);
      for (long key = 0; key < keys; key += KEYS) {
        const long some = std::min<long>(KEYS, keys - key);
        score(rows, near + key * reads, reads, some, s->scores);
        if (mask || key + some > shape->keys) {
          for (long j = 0; j < some; ++j) {
            const bool there = key + j < shape->keys;
            const float added = mask && there ? mask[b * mask_step + key + j] * LOG2E : 0.0f;
            s->bias[j] = there ? added : -std::numeric_limits<float>::infinity();
          }
          weigh<true>(*s, some, scale * LOG2E, sums, writes);
        } else {
          weigh<false>(*s, some, scale * LOG2E, sums, writes);
        }
        gather(s->weights, near + keys * reads + key * writes, writes, some, sums);
      }
      for (long row = 0; row < count; ++row) {
        // Where nothing is seen the result is 0, as torch has it.
        const __m512 share = _mm512_set1_ps(s->total[row] == 0.0f ? 0.0f : 1.0f / s->total[row]);
        uint16_t* place = out + b * os->batch + h * os->head + (first + row) * os->row;
        for (long c = 0; c < size; c += TILE) {
          const __m512 found = _mm512_mul_ps(_mm512_load_ps(sums + row * writes + c), share);
          const __mmask16 kept = size - c >= TILE ? 0xffff : (1 << (size - c)) - 1;
          _mm256_mask_storeu_epi16(place + c, kept, (__m256i)_mm512_cvtneps_pbh(found));
        }
      }
    }
    _tile_release();
    std::free(s), std::free(sums), std::free(rows);
  }
  std::free(packed);
  return failed;
}
