#include "linalg/factor.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <cmath>
#include <mutex>
#include <new>
#include <string>

#include "base/errors.h"

extern "C" {
int openblas_get_num_threads(void);
void openblas_set_num_threads(int threads);
}

namespace musespark {
namespace {

// The number of threads is the process's, so one factorization at a time.
class OneThread {
 public:
  OneThread() : alone_(mutex_), before_(openblas_get_num_threads()) { openblas_set_num_threads(1); }
  ~OneThread() { openblas_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  static inline std::mutex mutex_;
  std::lock_guard<std::mutex> alone_;
  int before_;
};

// Mean of the diagonal.
double checked_mean(const float* products, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i; j < n; ++j) {
      if (std::isfinite(products[i * n + j])) continue;
      throw InvalidRequest("[calibrate] the product of inputs " + std::to_string(i) + " and " +
                           std::to_string(j) + " is not finite");
    }
    sum += static_cast<double>(products[i * n + i]);
  }
  if (sum > 0) return sum / static_cast<double>(n);
  throw InvalidRequest("[calibrate] the inputs are all zero");
}

}  // namespace

void factor_products(const float* products, std::int64_t n, double damping, float* factor) {
  if (!(damping > 0 && damping <= 1)) {
    throw InvalidRequest("[calibrate] damping is " + std::to_string(damping) +
                         "; above 0 and up to 1 is allowed");
  }
  const double mean = checked_mean(products, n);
  const OneThread one;
  try {
    // Rows and columns in reverse, H = M M^T becomes the usual lower factor.
    Eigen::MatrixXd h(n, n);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i; j < n; ++j) {
        h(n - 1 - i, n - 1 - j) = static_cast<double>(products[i * n + j]) / mean;
      }
      h(n - 1 - i, n - 1 - i) += damping;
    }
    const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>, Eigen::Lower> lower(h);
    if (lower.info() != Eigen::Success) {
      throw InvalidRequest("[calibrate] the inputs' products are not positive definite");
    }
    for (std::int64_t k = 0; k < n; ++k) {
      const double last = h(n - 1 - k, n - 1 - k);
      for (std::int64_t i = 0; i < n; ++i) {
        factor[i * n + k] = i < k ? static_cast<float>(h(n - 1 - i, n - 1 - k) / last) : 0.0f;
      }
    }
  } catch (const std::bad_alloc&) {
    throw MemoryBudgetExceeded("[calibrate] no room for " + std::to_string(n) + " x " +
                               std::to_string(n) + " doubles");
  }
}

}  // namespace musespark
