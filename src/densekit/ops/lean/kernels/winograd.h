// Winograd's F(2x2, 3x3): four outputs of a 3x3 convolution from 16 products instead of 36.
//
// A tile of 4x4 pixels goes to B' d B, a window of weights to G g G' (inference.py), and their
// products, summed over channels, to the 2x2 outputs by A' m A. Lavin & Gray, 2015,
// arXiv:1509.09308. All of it is float, and only sums and differences: the largest factor is 1.
#pragma once
#include "rows.h"

namespace {

// d[4] -> B' d, in place; B' is rows (1 0 -1 0), (0 1 1 0), (0 -1 1 0), (0 1 0 -1).
template <class V>
inline void to_products(V& d0, V& d1, V& d2, V& d3) {
  V first = d0 - d2, second = d1 + d2, third = d2 - d1, fourth = d1 - d3;
  d0 = first, d1 = second, d2 = third, d3 = fourth;
}
template <class V>
inline void tile_to_products(V (&d)[4][4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) to_products(d[0][i], d[1][i], d[2][i], d[3][i]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) to_products(d[i][0], d[i][1], d[i][2], d[i][3]);
}

// m[4] -> A' m; A' is rows (1 1 1 0), (0 1 -1 -1).
template <class V>
inline void products_to_tile(const V (&m)[4][4], V (&z)[2][2]) {
  V half[2][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    half[0][i] = m[0][i] + m[1][i] + m[2][i];
    half[1][i] = m[1][i] - m[2][i] - m[3][i];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    z[i][0] = half[i][0] + half[i][1] + half[i][2];
    z[i][1] = half[i][1] - half[i][2] - half[i][3];
  }
}

}  // namespace
