// The functions of cuSOLVER and cuBLAS that calls.rs names, for memory of the CPU, by the plainest methods: what tests
// call in the libraries' place. Arguments are checked as the libraries document them, work memory is written to, and a
// triangle that a function does not promise to keep is destroyed.

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <vector>

using Complex = std::complex<float>;
using Address = uint64_t;
using Handle = void*;

namespace {

constexpr int OK = 0, INVALID = 3;
const float nan = std::numeric_limits<float>::quiet_NaN();

struct Context {
  void* stream = reinterpret_cast<void*>(1);
};

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

template <class T>
struct WideOf {
  using Type = double;
};
template <>
struct WideOf<Complex> {
  using Type = std::complex<double>;
};
template <class T>
using Wide = typename WideOf<T>::Type;

double conj_of(double a) {
  return a;
}
std::complex<double> conj_of(std::complex<double> a) {
  return std::conj(a);
}

// A matrix in columns.
template <class T>
struct Matrix {
  T* data;
  int lda;
  T& operator()(int i, int j) const {
    return data[i + static_cast<int64_t>(j) * lda];
  }
};

template <class T>
void spoil(Address work, int size) {
  std::fill_n(at<T>(work), size, T(nan));
}

bool is_ready(Handle handle) {
  return handle && static_cast<Context*>(handle)->stream == nullptr;
}

int potrf(int uplo, int n, Address a_, int lda, int* info, bool spoils) {
  Matrix<float> a{at<float>(a_), lda};
  const auto get = [&](int i, int j) -> float& { return uplo == 0 ? a(i, j) : a(j, i); };
  *info = 0;
  for (int j = 0; j < n; ++j) {
    for (int i = j; i < n; ++i) {
      double sum = get(i, j);
      for (int k = 0; k < j; ++k) {
        sum -= double(get(i, k)) * get(j, k);
      }
      if (i == j) {
        if (!(sum > 0)) {
          *info = j + 1;
          return OK;
        }
        get(i, j) = std::sqrt(sum);
      } else {
        get(i, j) = sum / get(j, j);
      }
    }
  }
  for (int j = 0; spoils && j < n; ++j) {
    for (int i = 0; i < j; ++i) {
      get(i, j) = nan;
    }
  }
  return OK;
}

int getrf(int m, int n, Address a_, int lda, int* pivots, int* info) {
  Matrix<float> a{at<float>(a_), lda};
  *info = 0;
  for (int j = 0; j < std::min(m, n); ++j) {
    int pivot = j;
    for (int i = j; i < m; ++i) {
      pivot = std::fabs(a(i, j)) > std::fabs(a(pivot, j)) ? i : pivot;
    }
    pivots[j] = pivot + 1;
    for (int k = 0; k < n; ++k) {
      std::swap(a(j, k), a(pivot, k));
    }
    if (a(j, j) == 0) {
      *info = *info ? *info : j + 1;
      continue;
    }
    for (int i = j + 1; i < m; ++i) {
      a(i, j) /= a(j, j);
      for (int k = j + 1; k < n; ++k) {
        a(i, k) -= a(i, j) * a(j, k);
      }
    }
  }
  return OK;
}

void getrs(int n, int columns, Address lu_, int lda, const int* pivots, Address b_, int ldb) {
  Matrix<float> lu{at<float>(lu_), lda}, b{at<float>(b_), ldb};
  for (int c = 0; c < columns; ++c) {
    for (int i = 0; i < n; ++i) {
      std::swap(b(i, c), b(pivots[i] - 1, c));
    }
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < i; ++k) {
        b(i, c) -= lu(i, k) * b(k, c);
      }
    }
    for (int i = n - 1; i >= 0; --i) {
      for (int k = i + 1; k < n; ++k) {
        b(i, c) -= lu(i, k) * b(k, c);
      }
      b(i, c) /= lu(i, i);
    }
  }
}

// x·op(a) = b over b {m, n}.
template <class T>
int trsm(
    int side, int uplo, int trans, int diag, int m, int n, const void* alpha, Address a_, int lda, Address b_, int ldb) {
  const auto one = *static_cast<const T*>(alpha);
  if (side != 1 || trans > 1 || m < 0 || n < 0 || lda < std::max(1, n) || ldb < std::max(1, m) || one != T(1)) {
    return INVALID;
  }
  Matrix<T> a{at<T>(a_), lda}, b{at<T>(b_), ldb};
  const auto get = [&](int i, int j) -> Wide<T> { return trans ? a(j, i) : a(i, j); };
  const bool upper = (uplo == 1) != (trans == 1);
  for (int row = 0; row < m; ++row) {
    for (int step = 0; step < n; ++step) {
      const int j = upper ? step : n - 1 - step;
      Wide<T> sum = b(row, j);
      for (int k = upper ? 0 : j + 1; k < (upper ? j : n); ++k) {
        sum -= Wide<T>(b(row, k)) * get(k, j);
      }
      b(row, j) = T(diag == 1 ? sum : sum / get(j, j));
    }
  }
  return OK;
}

// Eigenvalues in their order, and vectors in columns, of a Hermitian matrix {n, n} in columns, by Jacobi's rotations.
template <class W>
void jacobi(int n, std::vector<W>& a, std::vector<double>& values, std::vector<W>& vectors) {
  const auto A = [&](int i, int j) -> W& { return a[i + size_t(j) * n]; };
  std::vector<W> v(size_t(n) * n, W(0));
  for (int i = 0; i < n; ++i) {
    v[i + size_t(i) * n] = 1;
  }
  for (int sweep = 0; sweep < 60; ++sweep) {
    for (int p = 0; p < n; ++p) {
      for (int q = p + 1; q < n; ++q) {
        const double size = std::abs(A(p, q));
        if (size < 1e-300) {
          continue;
        }
        const W phase = A(p, q) / size;
        const double theta = (std::real(A(q, q)) - std::real(A(p, p))) / (2 * size);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        // The columns p and q of the rotation: (c, -s·phase̅) and (s·phase, c).
        const auto turn = [&](W* x, W* y, W to_y, W to_x) {
          const W left = *x, right = *y;
          *x = c * left - to_x * right;
          *y = to_y * left + c * right;
        };
        for (int k = 0; k < n; ++k) {
          turn(&A(k, p), &A(k, q), s * phase, s * conj_of(phase));
          turn(&v[k + size_t(p) * n], &v[k + size_t(q) * n], s * phase, s * conj_of(phase));
        }
        for (int k = 0; k < n; ++k) {
          turn(&A(p, k), &A(q, k), s * conj_of(phase), s * phase);
        }
      }
    }
  }
  std::vector<int> order(n);
  for (int i = 0; i < n; ++i) {
    order[i] = i;
  }
  std::sort(order.begin(), order.end(), [&](int i, int j) { return std::real(A(i, i)) < std::real(A(j, j)); });
  values.resize(n);
  vectors.resize(size_t(n) * n);
  for (int j = 0; j < n; ++j) {
    values[j] = std::real(A(order[j], order[j]));
    std::copy_n(&v[size_t(order[j]) * n], n, &vectors[size_t(j) * n]);
  }
}

template <class T>
int syevd(int job, int uplo, int n, Address a_, int lda, Address w, int* info) {
  Matrix<T> a{at<T>(a_), lda};
  std::vector<Wide<T>> whole(size_t(n) * n), vectors;
  std::vector<double> values;
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < n; ++i) {
      const bool is_kept = uplo == 1 ? i <= j : i >= j;
      whole[i + size_t(j) * n] = is_kept ? Wide<T>(a(i, j)) : conj_of(Wide<T>(a(j, i)));
    }
    whole[j + size_t(j) * n] = std::real(whole[j + size_t(j) * n]);
  }
  jacobi(n, whole, values, vectors);
  for (int j = 0; j < n; ++j) {
    at<float>(w)[j] = values[j];
    for (int i = 0; i < n; ++i) {
      a(i, j) = job == 1 ? T(vectors[i + size_t(j) * n]) : T(nan);
    }
  }
  *info = 0;
  return OK;
}

// Orthonormal columns of an m×m matrix, those after `count` made up.
template <class W>
void complete(int m, int count, std::vector<W>& u) {
  for (int j = count, unit = 0; j < m; ++unit) {
    W* column = &u[size_t(j) * m];
    std::fill_n(column, m, W(0));
    column[unit] = 1;
    for (int twice = 0; twice < 2; ++twice) {
      for (int k = 0; k < j; ++k) {
        W product = 0;
        for (int i = 0; i < m; ++i) {
          product += conj_of(u[i + size_t(k) * m]) * column[i];
        }
        for (int i = 0; i < m; ++i) {
          column[i] -= product * u[i + size_t(k) * m];
        }
      }
    }
    double norm = 0;
    for (int i = 0; i < m; ++i) {
      norm += std::norm(column[i]);
    }
    if (norm > 1e-3) {
      for (int i = 0; i < m; ++i) {
        column[i] /= std::sqrt(norm);
      }
      ++j;
    }
  }
}

template <class T>
int gesvdj(int job, int m, int n, Address a_, int lda, Address s, Address u_, int ldu, Address v_, int ldv, int* info) {
  using W = Wide<T>;
  if (lda < std::max(1, m) || ldu < std::max(1, m) || ldv < std::max(1, n)) {
    return INVALID;
  }
  Matrix<T> a{at<T>(a_), lda}, u{at<T>(u_), ldu}, v{at<T>(v_), ldv};
  const int k = std::min(m, n);
  std::vector<W> product(size_t(n) * n), vectors;
  std::vector<double> values;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      for (int l = 0; l < m; ++l) {
        product[i + size_t(j) * n] += conj_of(W(a(l, i))) * W(a(l, j));
      }
    }
  }
  jacobi(n, product, values, vectors);
  std::vector<W> left(size_t(m) * m), right(size_t(n) * n);
  int rank = 0;
  for (int j = 0; j < n; ++j) {
    std::copy_n(&vectors[size_t(n - 1 - j) * n], n, &right[size_t(j) * n]);
    if (j >= k) {
      continue;
    }
    double size = 0;
    for (int i = 0; i < m; ++i) {
      W sum = 0;
      for (int l = 0; l < n; ++l) {
        sum += W(a(i, l)) * right[l + size_t(j) * n];
      }
      left[i + size_t(j) * m] = sum;
      size += std::norm(sum);
    }
    size = std::sqrt(size);
    at<float>(s)[j] = size;
    if (size > 1e-12 && rank == j) {
      ++rank;
      for (int i = 0; i < m; ++i) {
        left[i + size_t(j) * m] /= size;
      }
    }
  }
  complete(m, rank, left);
  for (int i = 0; i < m * m; ++i) {
    u(i % m, i / m) = job == 1 ? T(left[i]) : T(nan);
  }
  for (int i = 0; i < n * n; ++i) {
    v(i % n, i / n) = job == 1 ? T(right[i]) : T(nan);
  }
  for (int i = 0; i < m * n; ++i) {
    a(i % m, i / m) = T(nan);
  }
  *info = 0;
  return OK;
}

} // namespace

extern "C" {

int make(Handle* handle) {
  *handle = new Context();
  return OK;
}
int cusolverDnCreate(Handle* handle) {
  return make(handle);
}
int cublasCreate_v2(Handle* handle) {
  return make(handle);
}
int cusolverDnCreateSyevjInfo(Handle* handle) {
  return make(handle);
}
int cusolverDnCreateGesvdjInfo(Handle* handle) {
  return make(handle);
}
int cusolverDnSetStream(Handle handle, void* stream) {
  static_cast<Context*>(handle)->stream = stream;
  return OK;
}
int cublasSetStream_v2(Handle handle, void* stream) {
  return cusolverDnSetStream(handle, stream);
}

int cusolverDnSpotrf_bufferSize(Handle, int, int n, Address, int, int* size) {
  *size = n + 3;
  return OK;
}
int cusolverDnSpotrf(Handle h, int uplo, int n, Address a, int lda, Address work, int size, Address info) {
  if (!is_ready(h) || lda < std::max(1, n) || size < n + 3 || uplo > 1) {
    return INVALID;
  }
  spoil<float>(work, size);
  return potrf(uplo, n, a, lda, at<int>(info), false);
}
int cusolverDnSpotrfBatched(Handle h, int uplo, int n, Address a, int lda, Address infos, int batch) {
  if (!is_ready(h) || lda < std::max(1, n) || uplo > 1) {
    return INVALID;
  }
  for (int i = 0; i < batch; ++i) {
    potrf(uplo, n, at<Address>(a)[i], lda, at<int>(infos) + i, true);
  }
  return OK;
}

int cusolverDnSgetrf_bufferSize(Handle, int m, int n, Address, int, int* size) {
  *size = m + n;
  return OK;
}
int cusolverDnSgetrf(Handle h, int m, int n, Address a, int lda, Address work, Address pivots, Address info) {
  if (!is_ready(h) || lda < std::max(1, m)) {
    return INVALID;
  }
  spoil<float>(work, m + n);
  return getrf(m, n, a, lda, at<int>(pivots), at<int>(info));
}
int cusolverDnSgetrs(
    Handle h, int trans, int n, int columns, Address a, int lda, Address pivots, Address b, int ldb, Address info) {
  if (!is_ready(h) || trans != 0 || lda < std::max(1, n) || ldb < std::max(1, n)) {
    return INVALID;
  }
  getrs(n, columns, a, lda, at<int>(pivots), b, ldb);
  *at<int>(info) = 0;
  return OK;
}
int cublasSgetrfBatched(Handle h, int n, Address a, int lda, Address pivots, Address infos, int batch) {
  if (!is_ready(h) || lda < std::max(1, n)) {
    return INVALID;
  }
  for (int i = 0; i < batch; ++i) {
    getrf(n, n, at<Address>(a)[i], lda, at<int>(pivots) + i * n, at<int>(infos) + i);
  }
  return OK;
}
int cublasSgetriBatched(
    Handle h, int n, Address a, int lda, Address pivots, Address c, int ldc, Address infos, int batch) {
  if (!is_ready(h) || lda < std::max(1, n) || ldc < std::max(1, n)) {
    return INVALID;
  }
  for (int i = 0; i < batch; ++i) {
    Matrix<float> identity{at<float>(at<Address>(c)[i]), ldc};
    for (int j = 0; j < n * n; ++j) {
      identity(j % n, j / n) = j % n == j / n;
    }
    getrs(n, n, at<Address>(a)[i], lda, at<int>(pivots) + i * n, at<Address>(c)[i], ldc);
    at<int>(infos)[i] = 0;
  }
  return OK;
}

int cusolverDnSgeqrf_bufferSize(Handle, int, int n, Address, int, int* size) {
  *size = n;
  return OK;
}
int cusolverDnSgeqrf(Handle h, int m, int n, Address a_, int lda, Address tau_, Address work, int size, Address info) {
  if (!is_ready(h) || lda < std::max(1, m) || size < n) {
    return INVALID;
  }
  spoil<float>(work, size);
  Matrix<float> a{at<float>(a_), lda};
  float* tau = at<float>(tau_);
  for (int j = 0; j < std::min(m, n); ++j) {
    double below = 0;
    for (int i = j + 1; i < m; ++i) {
      below += double(a(i, j)) * a(i, j);
    }
    tau[j] = 0;
    if (below == 0) {
      continue;
    }
    const double alpha = a(j, j), norm = std::sqrt(alpha * alpha + below), beta = alpha > 0 ? -norm : norm;
    tau[j] = (beta - alpha) / beta;
    for (int i = j + 1; i < m; ++i) {
      a(i, j) /= alpha - beta;
    }
    a(j, j) = beta;
    for (int k = j + 1; k < n; ++k) {
      double sum = a(j, k);
      for (int i = j + 1; i < m; ++i) {
        sum += double(a(i, j)) * a(i, k);
      }
      a(j, k) -= tau[j] * sum;
      for (int i = j + 1; i < m; ++i) {
        a(i, k) -= tau[j] * sum * a(i, j);
      }
    }
  }
  *at<int>(info) = 0;
  return OK;
}
int cusolverDnSorgqr_bufferSize(Handle, int, int n, int, Address, int, Address, int* size) {
  *size = 2 * n + 1;
  return OK;
}
int cusolverDnSorgqr(
    Handle h, int m, int n, int k, Address a_, int lda, Address tau_, Address work, int size, Address info) {
  if (!is_ready(h) || m < n || n < k || lda < std::max(1, m) || size < 2 * n + 1) {
    return INVALID;
  }
  spoil<float>(work, size);
  Matrix<float> a{at<float>(a_), lda};
  std::vector<double> q(size_t(m) * n);
  for (int c = 0; c < n; ++c) {
    double* column = &q[size_t(c) * m];
    column[c] = 1;
    for (int j = k - 1; j >= 0; --j) {
      double sum = column[j];
      for (int i = j + 1; i < m; ++i) {
        sum += double(a(i, j)) * column[i];
      }
      column[j] -= at<float>(tau_)[j] * sum;
      for (int i = j + 1; i < m; ++i) {
        column[i] -= at<float>(tau_)[j] * sum * a(i, j);
      }
    }
  }
  for (int i = 0; i < m * n; ++i) {
    a(i % m, i / m) = q[i];
  }
  *at<int>(info) = 0;
  return OK;
}

#define EMLX_SYEV(T, EVD, EVJ)                                                                                       \
  int cusolverDn##EVD##_bufferSize(Handle, int, int, int n, Address, int, Address, int* size) {                      \
    *size = 5 * n;                                                                                                   \
    return OK;                                                                                                       \
  }                                                                                                                  \
  int cusolverDn##EVD(                                                                                               \
      Handle h, int job, int uplo, int n, Address a, int lda, Address w, Address work, int size, Address info) {     \
    if (!is_ready(h) || lda < std::max(1, n) || size < 5 * n) {                                                      \
      return INVALID;                                                                                                \
    }                                                                                                                \
    spoil<T>(work, size);                                                                                            \
    return syevd<T>(job, uplo, n, a, lda, w, at<int>(info));                                                         \
  }                                                                                                                  \
  int cusolverDn##EVJ##Batched_bufferSize(                                                                           \
      Handle, int, int, int n, Address, int, Address, int* size, Handle, int batch) {                                \
    *size = 2 * n * batch;                                                                                           \
    return OK;                                                                                                       \
  }                                                                                                                  \
  int cusolverDn##EVJ##Batched(                                                                                      \
      Handle h, int job, int uplo, int n, Address a, int lda, Address w, Address work, int size, Address infos,      \
      Handle parameters, int batch) {                                                                                \
    if (!is_ready(h) || !parameters || lda < std::max(1, n) || size < 2 * n * batch) {                               \
      return INVALID;                                                                                                \
    }                                                                                                                \
    spoil<T>(work, size);                                                                                            \
    for (int i = 0; i < batch; ++i) {                                                                                \
      const Address own = a + sizeof(T) * lda * n * i;                                                               \
      syevd<T>(job, uplo, n, own, lda, w + sizeof(float) * n * i, at<int>(infos) + i);                               \
    }                                                                                                                \
    return OK;                                                                                                       \
  }

EMLX_SYEV(float, Ssyevd, Ssyevj)
EMLX_SYEV(Complex, Cheevd, Cheevj)

#define EMLX_GESVD(T, NAME)                                                                                          \
  int cusolverDn##NAME##_bufferSize(                                                                                 \
      Handle, int, int, int m, int n, Address, int, Address, Address, int, Address, int, int* size, Handle) {        \
    *size = m + n;                                                                                                   \
    return OK;                                                                                                       \
  }                                                                                                                  \
  int cusolverDn##NAME(                                                                                              \
      Handle h, int job, int economy, int m, int n, Address a, int lda, Address s, Address u, int ldu, Address v,    \
      int ldv, Address work, int size, Address info, Handle parameters) {                                            \
    if (!is_ready(h) || !parameters || economy != 0 || size < m + n) {                                               \
      return INVALID;                                                                                                \
    }                                                                                                                \
    spoil<T>(work, size);                                                                                            \
    return gesvdj<T>(job, m, n, a, lda, s, u, ldu, v, ldv, at<int>(info));                                           \
  }                                                                                                                  \
  int cusolverDn##NAME##Batched_bufferSize(                                                                          \
      Handle, int, int m, int n, Address, int, Address, Address, int, Address, int, int* size, Handle, int batch) {  \
    *size = (m + n) * batch;                                                                                         \
    return OK;                                                                                                       \
  }                                                                                                                  \
  int cusolverDn##NAME##Batched(                                                                                     \
      Handle h, int job, int m, int n, Address a, int lda, Address s, Address u, int ldu, Address v, int ldv,        \
      Address work, int size, Address infos, Handle parameters, int batch) {                                         \
    if (!is_ready(h) || !parameters || m > 32 || n > 32 || size < (m + n) * batch) {                                 \
      return INVALID;                                                                                                \
    }                                                                                                                \
    spoil<T>(work, size);                                                                                            \
    for (int i = 0; i < batch; ++i) {                                                                                \
      const int status = gesvdj<T>(                                                                                  \
          job, m, n, a + sizeof(T) * lda * n * i, lda, s + sizeof(float) * std::min(m, n) * i,                       \
          u + sizeof(T) * ldu * m * i, ldu, v + sizeof(T) * ldv * n * i, ldv, at<int>(infos) + i);                   \
      if (status != OK) {                                                                                            \
        return status;                                                                                               \
      }                                                                                                              \
    }                                                                                                                \
    return OK;                                                                                                       \
  }

EMLX_GESVD(float, Sgesvdj)
EMLX_GESVD(Complex, Cgesvdj)

#define EMLX_TRSM(T, NAME, BATCHED)                                                                                  \
  int NAME(                                                                                                          \
      Handle h, int side, int uplo, int trans, int diag, int m, int n, const void* alpha, Address a, int lda,        \
      Address b, int ldb) {                                                                                          \
    return is_ready(h) ? trsm<T>(side, uplo, trans, diag, m, n, alpha, a, lda, b, ldb) : INVALID;                    \
  }                                                                                                                  \
  int BATCHED(                                                                                                       \
      Handle h, int side, int uplo, int trans, int diag, int m, int n, const void* alpha, Address a, int lda,        \
      Address b, int ldb, int batch) {                                                                               \
    for (int i = 0; i < batch; ++i) {                                                                                \
      const int status =                                                                                             \
          NAME(h, side, uplo, trans, diag, m, n, alpha, at<Address>(a)[i], lda, at<Address>(b)[i], ldb);             \
      if (status != OK) {                                                                                            \
        return status;                                                                                               \
      }                                                                                                              \
    }                                                                                                                \
    return OK;                                                                                                       \
  }

EMLX_TRSM(float, cublasStrsm_v2, cublasStrsmBatched)
EMLX_TRSM(Complex, cublasCtrsm_v2, cublasCtrsmBatched)
}
