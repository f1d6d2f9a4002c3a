// The kernels in native/src/op/cuda/*.cu, run by emulate.hpp, against their formulas. `check` beside this builds it
// with -DT=float and -DT=bf16.
#include <random>

#include "emulate.hpp"

namespace {

std::mt19937 seeded(1);
int failures = 0;

std::vector<T> normal(size_t count, float scale = 1.0f) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<T> numbers(count);
  for (auto& number : numbers) {
    number = T(distribution(seeded));
  }
  return numbers;
}

float rounded(float number) {
  return float(T(number));
}

int bits(float number) {
  int result;
  memcpy(&result, &number, 4);
  return result;
}

void check(const char* name, const std::vector<T>& have, const std::vector<float>& want) {
  float apart = 0.0f, largest = 1.0f;
  for (size_t i = 0; i < want.size(); ++i) {
    const float distance = std::fabs(float(have[i]) - want[i]);
    apart = std::isnan(distance) ? INFINITY : std::max(apart, distance);
    largest = std::max(largest, std::fabs(want[i]));
  }
  const bool near = have.size() == want.size() && apart <= (sizeof(T) == 2 ? 0.02f : 1e-4f) * largest;
  failures += !near;
  if (!near) {
    printf("%s: %g apart, the largest number is %g\n", name, apart, largest);
  }
}

// ---- products ----

// Products of x, which may be normed, with matrices of `number(i, k, c)`, gated or with a sum after the only one.
template <int K, int ROWS, bool NORM, bool RESIDUAL, bool GATED, int COUNT, class Number>
void check_products(const char* name, const int* sizes, const std::vector<T>& xs, const std::vector<T>& norms,
                    const std::vector<T>& added, const std::vector<T>* results, Number number) {
  std::vector<float> wanted[3];
  for (int i = 0; i < COUNT; ++i) {
    for (int r = 0; r < ROWS; ++r) {
      std::vector<float> row(xs.begin() + r * K, xs.begin() + (r + 1) * K);
      if (NORM) {
        float squares = 0.0f;
        for (const float value : row) {
          squares += value * value;
        }
        const float scale = 1 / std::sqrt(squares / K + 1e-6f);
        for (int k = 0; k < K; ++k) {
          row[k] = rounded(rounded(row[k] * scale) * float(norms[k]));
        }
      }
      for (int c = 0; c < sizes[i]; ++c) {
        double sum = 0;
        for (int k = 0; k < K; ++k) {
          sum += double(row[k]) * number(i, k, c);
        }
        wanted[i].push_back(rounded(sum));
      }
    }
  }
  if (GATED) {
    for (size_t j = 0; j < wanted[0].size(); ++j) {
      const float gate = wanted[0][j], sigmoid = rounded(1 / (1 + std::exp(-gate)));
      wanted[0][j] = rounded(rounded(sigmoid * gate) * wanted[1][j]);
    }
    return check(name, results[0], wanted[0]);
  }
  for (int i = 0; i < COUNT; ++i) {
    for (size_t j = 0; RESIDUAL && j < wanted[i].size(); ++j) {
      wanted[i][j] = rounded(wanted[i][j] + float(added[j]));
    }
    check(name, results[i], wanted[i]);
  }
}

enum Layout { ROWS_OF_MATRIX, COLUMNS_OF_MATRIX, WITH_GAPS };

template <int K, int N0, int N1, int N2, int ROWS, bool NORM, bool RESIDUAL, bool GATED, int WIDE>
void products(const char* name, Layout layout) {
  constexpr int COUNT = N1 == 0 ? 1 : N2 == 0 ? 2 : 3, THREADS = 512, AXIS = 1, LAST = 2, ADDED = 0, ADDED_LAST = 1, TILE = WIDE * 16 / sizeof(T);
  const int EPS = bits(1e-6f), sizes[] = {N0, N1, N2};
  const auto xs = normal(ROWS * K), norms = normal(K), added = normal(ROWS * N0);
  std::vector<T> matrices[3], results[3];
  Strides strides[3];
  int tiles = 0;
  for (int i = 0; i < 3; ++i) {
    const int n = i < COUNT ? sizes[i] : N0;
    matrices[i] = normal(size_t(K) * n * (layout == WITH_GAPS ? 2 : 1), 1 / std::sqrt(float(K)));
    strides[i] = layout == ROWS_OF_MATRIX ? Strides{n, 1} : layout == COLUMNS_OF_MATRIX ? Strides{1, K} : Strides{2 * n, 2};
    if (i < COUNT) {
      results[i].resize(ROWS * n);
      tiles += n / TILE;
    }
  }
  const T *x = xs.data(), *norm = norms.data(), *residual = added.data();
  const T *w0 = matrices[0].data(), *w1 = matrices[1].data(), *w2 = matrices[2].data();
  const Strides x_strides{0, K, 1}, norm_strides{1}, residual_strides{N0, 1};
  const Strides w0_strides = strides[0], w1_strides = strides[1], w2_strides = strides[2];
  T *out0 = results[0].data(), *out1 = results[1].data(), *out2 = results[2].data();
  emulate::launch(GATED ? N0 / TILE : tiles, THREADS, [=] {
    T* outs[] = {out0, out1, out2};
#include "../../native/src/op/cuda/tiles.cu"
#include "../../native/src/op/cuda/few_rows.cu"
#include "../../native/src/op/cuda/products.cu"
  });

  check_products<K, ROWS, NORM, RESIDUAL, GATED, COUNT>(name, sizes, xs, norms, added, results, [&](int i, int k, int c) {
    return double(float(matrices[i][k * strides[i][0] + c * strides[i][1]]));
  });
}

// By tensor cores, which have no f32.
template <int K, int N0, int N1, int N2, int ROWS, bool NORM, bool RESIDUAL, bool GATED, int NT>
void tensor_products(const char* name, Layout layout) {
  if constexpr (sizeof(T) == 2) {
    constexpr int COUNT = N1 == 0 ? 1 : N2 == 0 ? 2 : 3, THREADS = 256, AXIS = 0, LAST = 2, ADDED = 0, ADDED_LAST = 1;
    constexpr int TILE = NT * 8, F16 = 0;
    const int EPS = bits(1e-6f), sizes[] = {N0, N1, N2};
    const auto xs = normal(ROWS * K), norms = normal(K), added = normal(ROWS * N0);
    std::vector<T> matrices[3], results[3];
    Strides strides[3];
    int tiles = 0;
    for (int i = 0; i < 3; ++i) {
      const int n = i < COUNT ? sizes[i] : N0;
      matrices[i] = normal(size_t(K) * n * (layout == WITH_GAPS ? 2 : 1), 1 / std::sqrt(float(K)));
      strides[i] = layout == ROWS_OF_MATRIX ? Strides{n, 1} : layout == COLUMNS_OF_MATRIX ? Strides{1, K} : Strides{2 * n, 2};
      if (i < COUNT) {
        results[i].resize(ROWS * n);
        tiles += n / TILE;
      }
    }
    const T *x = xs.data(), *norm = norms.data(), *residual = added.data();
    const T *w0 = matrices[0].data(), *w1 = matrices[1].data(), *w2 = matrices[2].data();
    const Strides x_strides{K, K, 1}, norm_strides{1}, residual_strides{N0, 1};
    const Strides w0_strides = strides[0], w1_strides = strides[1], w2_strides = strides[2];
    T *out0 = results[0].data(), *out1 = results[1].data(), *out2 = results[2].data();
    emulate::launch(GATED ? N0 / TILE : tiles, THREADS, [=] {
      T* outs[] = {out0, out1, out2};
#include "../../native/src/op/cuda/tiles.cu"
#include "../../native/src/op/cuda/tensor_products.cu"
    });
    check_products<K, ROWS, NORM, RESIDUAL, GATED, COUNT>(name, sizes, xs, norms, added, results, [&](int i, int k, int c) {
      return double(float(matrices[i][k * strides[i][0] + c * strides[i][1]]));
    });
  }
}

// ---- quantized products ----

template <int K, int N0, int N1, int N2, int ROWS, bool NORM, bool RESIDUAL, bool GATED, int BITS, int GROUP, int SPLIT>
void quantized_products(const char* name) {
  constexpr int COUNT = N1 == 0 ? 1 : N2 == 0 ? 2 : 3, THREADS = 256, AXIS = 1, LAST = 2, ADDED = 0, ADDED_LAST = 1, TILE = 32 / SPLIT;
  constexpr int PER_WORD = 32 / BITS, PER_ROW = K / PER_WORD, GROUPS = K / GROUP;
  const int EPS = bits(1e-6f), sizes[] = {N0, N1, N2};
  const auto xs = normal(ROWS * K), norms = normal(K), added = normal(ROWS * N0);
  std::vector<unsigned int> packed[3];
  std::vector<T> all_scale[3], all_bias[3], results[3];
  int tiles = 0;
  for (int i = 0; i < 3; ++i) {
    const int n = i < COUNT ? sizes[i] : N0;
    packed[i].resize(size_t(n) * PER_ROW);
    unsigned int seed = 77 + i;
    for (auto& word : packed[i]) {
      seed = seed * 1664525u + 1013904223u;
      word = seed ^ (seed >> 13);
    }
    all_scale[i] = normal(size_t(n) * GROUPS, 1 / (std::sqrt(float(K)) * (1 << BITS)));
    all_bias[i] = normal(size_t(n) * GROUPS, 1 / std::sqrt(float(K)));
    if (i < COUNT) {
      results[i].resize(ROWS * n);
      tiles += n / TILE;
    }
  }
  const T *x = xs.data(), *norm = norms.data(), *residual = added.data();
  const unsigned int *w0 = packed[0].data(), *w1 = packed[1].data(), *w2 = packed[2].data();
  const T *scales0 = all_scale[0].data(), *scales1 = all_scale[1].data(), *scales2 = all_scale[2].data();
  const T *biases0 = all_bias[0].data(), *biases1 = all_bias[1].data(), *biases2 = all_bias[2].data();
  const Strides x_strides{0, K, 1}, norm_strides{1}, residual_strides{N0, 1};
  const Strides w0_strides{PER_ROW, 1}, w1_strides = w0_strides, w2_strides = w0_strides;
  const Strides scales0_strides{GROUPS, 1}, scales1_strides = scales0_strides, scales2_strides = scales0_strides;
  const Strides biases0_strides = scales0_strides, biases1_strides = scales0_strides, biases2_strides = scales0_strides;
  T *out0 = results[0].data(), *out1 = results[1].data(), *out2 = results[2].data();
  emulate::launch(GATED ? N0 / TILE : tiles, THREADS, [=] {
    T* outs[] = {out0, out1, out2};
#include "../../native/src/op/cuda/tiles.cu"
#include "../../native/src/op/cuda/few_rows.cu"
#include "../../native/src/op/cuda/quantized_products.cu"
  });

  check_products<K, ROWS, NORM, RESIDUAL, GATED, COUNT>(name, sizes, xs, norms, added, results, [&](int i, int k, int c) {
    const unsigned int code = packed[i][c * PER_ROW + k / PER_WORD] >> (k % PER_WORD * BITS) & ((1u << BITS) - 1);
    const int group = c * GROUPS + k / GROUP;
    return double(code) * float(all_scale[i][group]) + float(all_bias[i][group]);
  });
}

// ---- attention ----

// Of keys up to `seen_to`, but for every fifth. The cache lies by position, or by head.
template <int BATCH, int HEADS, int KV_HEADS, int LENGTH, int SIZE, bool MASKED, bool MASK_BATCH, bool MASK_HEADS>
void attention(const char* name, int seen_to, bool by_position) {
  constexpr int THREADS = 512;
  const float scale = 1 / std::sqrt(float(SIZE));
  const int SCALE = bits(scale);
  const auto queries = normal(BATCH * HEADS * SIZE);
  const auto keys_of = normal(size_t(BATCH) * LENGTH * KV_HEADS * SIZE), values_of = normal(size_t(BATCH) * LENGTH * KV_HEADS * SIZE);
  std::vector<char> visible(BATCH * HEADS * LENGTH);
  for (size_t i = 0; i < visible.size(); ++i) {
    const int place = i % LENGTH;
    visible[i] = place < seen_to && place % 5 != int(i / LENGTH % 3);
  }
  const T *q = queries.data(), *k = keys_of.data(), *v = values_of.data();
  const bool* mask = reinterpret_cast<const bool*>(visible.data());
  const Strides q_strides{HEADS * SIZE, HEADS * SIZE, SIZE, 1}, mask_strides{HEADS * LENGTH, LENGTH, LENGTH, 1};
  const Strides k_strides = by_position ? Strides{LENGTH * KV_HEADS * SIZE, KV_HEADS * SIZE, SIZE, 1}
                                        : Strides{LENGTH * KV_HEADS * SIZE, SIZE, LENGTH * SIZE, 1};
  const Strides v_strides = k_strides;
  std::vector<T> result(BATCH * HEADS * SIZE);
  T* out = result.data();
  emulate::launch(BATCH * HEADS, THREADS, [=] {
#include "../../native/src/op/cuda/attention.cu"
  });

  std::vector<float> wanted;
  for (int b = 0; b < BATCH; ++b) {
    for (int h = 0; h < HEADS; ++h) {
      const auto at = [&](int place, int d) {
        return b * k_strides[0] + place * k_strides[1] + h / (HEADS / KV_HEADS) * k_strides[2] + d;
      };
      std::vector<double> scores(LENGTH);
      for (int place = 0; place < LENGTH; ++place) {
        for (int d = 0; d < SIZE; ++d) {
          scores[place] += double(float(queries[(b * HEADS + h) * SIZE + d])) * scale * float(keys_of[at(place, d)]);
        }
        const int row = (MASK_BATCH ? b * HEADS : 0) + (MASK_HEADS ? h : 0);
        // A query that sees no key sees all of them equally.
        scores[place] = MASKED && !visible[row * LENGTH + place] ? -1e30 : scores[place];
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (auto& score : scores) {
        score = std::exp(score - top);
        total += score;
      }
      for (int d = 0; d < SIZE; ++d) {
        double sum = 0;
        for (int place = 0; place < LENGTH; ++place) {
          sum += scores[place] / total * float(values_of[at(place, d)]);
        }
        wanted.push_back(sum);
      }
    }
  }
  check(name, result, wanted);
}

// ---- heads ----

template <int HEADS, int KV_HEADS, int REPEAT, int SIZE, int ROWS, bool NORM, bool OWN_FREQS>
void heads(const char* name) {
  constexpr int THREADS = 128, HALF_OF = SIZE / 2;
  const int SCALE = bits(1.0f), EPS = bits(1e-6f), BASE = bits(std::log2(10000.0f));
  const auto queries = normal(ROWS * HEADS * SIZE), keys = normal(ROWS * KV_HEADS * SIZE), values = normal(ROWS * KV_HEADS * SIZE);
  const auto q_weights = normal(SIZE), k_weights = normal(SIZE);
  std::vector<int> offsets(ROWS);
  for (int r = 0; r < ROWS; ++r) {
    offsets[r] = 17 + r * 5;
  }
  std::vector<float> own(HALF_OF);
  for (int i = 0; i < HALF_OF; ++i) {
    own[i] = std::pow(OWN_FREQS ? 5000.0f : 10000.0f, 2.0f * i / SIZE);
  }
  const T *q = queries.data(), *k = keys.data(), *v = values.data(), *q_norm = q_weights.data(), *k_norm = k_weights.data();
  const int* offset = offsets.data();
  const float* freqs = own.data();
  const Strides q_strides{HEADS * SIZE, 1}, k_strides{KV_HEADS * SIZE, 1}, v_strides = k_strides;
  const Strides q_norm_strides{1}, k_norm_strides{1}, offset_strides{1}, freqs_strides{1};
  std::vector<T> results[] = {
      std::vector<T>(ROWS * HEADS * SIZE),
      std::vector<T>(ROWS * KV_HEADS * REPEAT * SIZE),
      std::vector<T>(ROWS * KV_HEADS * REPEAT * SIZE)};
  T *out_q = results[0].data(), *out_k = results[1].data(), *out_v = results[2].data();
  emulate::launch((ROWS * (HEADS + 2 * KV_HEADS) + 3) / 4, THREADS, [=] {
#include "../../native/src/op/cuda/heads.cu"
  });

  const auto formula = [&](const std::vector<T>& from, const std::vector<T>* weight, int count, int repeat) {
    std::vector<float> all;
    for (int item = 0; item < ROWS * count; ++item) {
      std::vector<float> head(from.begin() + item * SIZE, from.begin() + (item + 1) * SIZE);
      if (weight && NORM) {
        float squares = 0.0f;
        for (const float value : head) {
          squares += value * value;
        }
        const float scale = 1 / std::sqrt(squares / SIZE + 1e-6f);
        for (int d = 0; d < SIZE; ++d) {
          head[d] = rounded(rounded(head[d] * scale) * float((*weight)[d]));
        }
      }
      auto turned = head;
      for (int i = 0; weight && i < HALF_OF; ++i) {
        const float angle = offsets[item / count] / own[i], cosine = std::cos(angle), sine = std::sin(angle);
        turned[i] = head[i] * cosine - head[i + HALF_OF] * sine;
        turned[i + HALF_OF] = head[i] * sine + head[i + HALF_OF] * cosine;
      }
      for (int copy = 0; copy < repeat; ++copy) {
        all.insert(all.end(), turned.begin(), turned.end());
      }
    }
    return all;
  };
  check(name, results[0], formula(queries, &q_weights, HEADS, 1));
  check(name, results[1], formula(keys, &k_weights, KV_HEADS, REPEAT));
  check(name, results[2], formula(values, nullptr, KV_HEADS, REPEAT));
}

// ---- layer_norm ----

// As in mod.rs.
constexpr int width(int size) {
  int vec = 16 / sizeof(T);
  while (size % vec != 0) {
    vec /= 2;
  }
  return vec;
}

constexpr int threads(int size) {
  const int bytes = size * sizeof(T), least = bytes > 16384 ? (bytes + 2047) / 2048 : (bytes + 1023) / 1024;
  for (int warps = least; warps <= std::min(2 * least, 32); ++warps) {
    if (size % (warps * 32 * width(size)) == 0) {
      return warps * 32;
    }
  }
  return least * 32;
}

// Three rows: around a centre, with numbers far from the others, and of one number. x and the weight lie some numbers
// off a pack.
template <int SIZE, bool WEIGHTED, bool BIASED, int THREADS = threads(SIZE)>
void layer_norm(const char* name, float centre = 0.0f, int x_off = 0, int weight_off = 0) {
  constexpr int ROWS = 3, VEC = width(SIZE);
  auto xs = normal(x_off + ROWS * SIZE);
  const auto gains = normal(weight_off + SIZE), added = normal(SIZE);
  const float epsilon = 1e-5f, *eps = &epsilon;
  for (size_t i = x_off; i < xs.size(); ++i) {
    xs[i] = T(i < x_off + 2 * SIZE ? float(xs[i]) + centre : centre + 0.1f);
  }
  xs[x_off + SIZE] = xs[x_off + SIZE + SIZE / 2] = T(centre + 300.0f);
  const T *x = xs.data() + x_off, *weight = WEIGHTED ? gains.data() + weight_off : x, *bias = BIASED ? added.data() : x;
  std::vector<T> result(ROWS * SIZE, T(NAN));
  T* out = result.data();
  emulate::launch(ROWS, THREADS, [=] {
#include "../../native/src/op/cuda/layer_norm.cu"
  });

  for (int r = 0; r < ROWS; ++r) {
    const T* row = x + r * SIZE;
    double mean = 0, squares = 0;
    for (int i = 0; i < SIZE; ++i) {
      mean += double(float(row[i])) / SIZE;
    }
    for (int i = 0; i < SIZE; ++i) {
      squares += (float(row[i]) - mean) * (float(row[i]) - mean);
    }
    std::vector<float> wanted;
    for (int i = 0; i < SIZE; ++i) {
      const double y = (float(row[i]) - mean) / std::sqrt(squares / SIZE + epsilon) * (WEIGHTED ? float(weight[i]) : 1.0f);
      wanted.push_back(rounded(y + (BIASED ? float(bias[i]) : 0.0f)));
    }
    check(name, std::vector<T>(result.begin() + r * SIZE, result.begin() + (r + 1) * SIZE), wanted);
  }
}

} // namespace

int main() {
  products<1024, 64, 32, 32, 1, true, false, false, 4>("three products of a norm", ROWS_OF_MATRIX);
  products<1024, 64, 32, 32, 1, true, false, false, 2>("three products with transposed matrices", COLUMNS_OF_MATRIX);
  products<1024, 64, 32, 32, 2, true, false, false, 2>("three products with gaps, two rows", WITH_GAPS);
  products<1024, 64, 64, 0, 1, true, false, true, 4>("a gate", ROWS_OF_MATRIX);
  products<96, 64, 64, 0, 3, false, false, true, 2>("a gate of three rows with transposed matrices", COLUMNS_OF_MATRIX);
  products<3072, 64, 0, 0, 1, false, true, false, 2>("a product and a sum", ROWS_OF_MATRIX);
  quantized_products<1024, 64, 32, 32, 1, true, false, false, 4, 64, 4>("three quantized products of a norm");
  quantized_products<2048, 64, 64, 0, 1, true, false, true, 4, 32, 1>("a quantized gate");
  quantized_products<96, 64, 64, 0, 3, false, false, true, 8, 32, 8>("a quantized gate of three rows, 8 bits");
  quantized_products<3072, 64, 0, 0, 1, false, true, false, 4, 128, 2>("a quantized product and a sum");
  quantized_products<512, 36, 0, 0, 4, true, true, false, 8, 64, 8>("a norm, a quantized product and a sum of four rows");
  products<1000, 64, 0, 0, 4, true, true, false, 4>("a norm, a product and a sum of four rows", ROWS_OF_MATRIX);
  tensor_products<1024, 64, 32, 32, 1, true, false, false, 1>("three tensor products of a norm", COLUMNS_OF_MATRIX);
  tensor_products<512, 64, 64, 0, 8, true, false, true, 2>("a tensor gate of eight rows", COLUMNS_OF_MATRIX);
  tensor_products<512, 64, 64, 0, 5, true, false, true, 4>("a tensor gate of five rows, not transposed", ROWS_OF_MATRIX);
  tensor_products<96, 64, 64, 0, 64, false, false, true, 2>("a tensor gate of 64 rows", COLUMNS_OF_MATRIX);
  tensor_products<3072, 64, 0, 0, 13, false, true, false, 1>("a tensor product and a sum of 13 rows", COLUMNS_OF_MATRIX);
  tensor_products<288, 64, 0, 0, 33, true, true, false, 4>("a norm, a tensor product and a sum of 33 rows", ROWS_OF_MATRIX);
  tensor_products<160, 128, 64, 64, 16, true, false, false, 8>("three tensor products of 16 rows", COLUMNS_OF_MATRIX);
  tensor_products<160, 64, 0, 0, 2, false, false, false, 2>("a tensor product of two rows with gaps", WITH_GAPS);
  products<1000, 64, 0, 0, 1, false, false, false, 4>("a product with a transposed matrix", COLUMNS_OF_MATRIX);
  attention<2, 4, 2, 200, 128, true, true, true>("attention with a mask for each head", 150, false);
  attention<1, 4, 4, 384, 64, true, false, false>("attention with one mask", 77, true);
  attention<2, 4, 2, 33, 128, false, false, false>("attention without a mask", 33, true);
  attention<1, 2, 2, 40, 64, true, false, false>("attention that sees nothing", 0, true);
  heads<4, 2, 2, 128, 1, true, true>("heads with norms and frequencies");
  heads<4, 4, 1, 64, 3, false, false>("heads of three rows by a base");
  layer_norm<64, true, true>("a norm of 64, in which threads have no number");
  layer_norm<200, true, true>("a norm of 200");
  layer_norm<77, true, true>("a norm of 77, by single numbers");
  layer_norm<768, true, true>("a norm of 768, by three warps");
  layer_norm<4096, true, true>("a norm of 4096");
  layer_norm<4096, true, false>("a norm of 4096 without a bias");
  layer_norm<4096, false, true>("a norm of 4096 without a weight");
  layer_norm<4096, false, false>("a norm of 4096 alone");
  layer_norm<4096, true, true>("a norm of 4096 around 1000", 1000.0f);
  layer_norm<4096, true, true>("a norm of 4096, x off its packs", 10.0f, 1);
  layer_norm<4096, true, true>("a norm of 4096, the weight off its packs", 10.0f, 0, 3);
  layer_norm<4096, false, false, 32>("a norm of 4096 by one warp", 1000.0f);
  layer_norm<4100, true, true>("a norm of 4100 around -1000", -1000.0f);
  layer_norm<4100, false, true>("a norm of 4100, x off its packs", 1000.0f, 1);
  layer_norm<5000, true, true>("a norm of 5000");
  layer_norm<5000, true, false>("a norm of 5000, x and the weight off their packs", -10.0f, 5, 1);
  layer_norm<16384, true, true>("a norm of 16384 around 1000", 1000.0f);
  layer_norm<16384, false, false, 1024>("a norm of 16384 by 32 warps");
  printf("%d failures\n", failures);
  return failures != 0;
}
