// The rowwise kernels: lengths around a vector, ordinary and extraordinary numbers.
#include <cmath>
#include <limits>

#include "base/hash.h"
#include "cases.h"
#include "kernels/rowwise/rowwise.h"

namespace musespark::digests {
namespace {

constexpr std::int64_t kLengths[] = {1, 5, 15, 16, 17, 33, 100, 260};
constexpr Activation kActivations[] = {Activation::silu, Activation::gelu_tanh, Activation::gelu,
                                       Activation::relu, Activation::relu2};

enum class Kind { plain, any, special, zeros };

void fill(Random& random, Kind kind, std::span<float> x) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float special[] = {0.0f,    -0.0f, kInfinity, -kInfinity, std::nanf(""), 1e-45f,
                           -1e-40f, 88.8f, -104.5f,   3e38f,      0.625f};
  random.fill(x, 4.0f);
  for (float& value : x) {
    if (kind == Kind::zeros) value = std::copysign(0.0f, value);
    if (kind == Kind::any) value = random.any_finite();
    if (kind == Kind::special && random.below(3) == 0) value = special[random.below(11)];
  }
}

// A row's inputs. Every function's results follow one another.
struct Inputs {
  explicit Inputs(std::int64_t length) : n(length), x(length), y(length), z(length) {}
  std::int64_t n;
  Array<float> x, y, z;
};

Bytes run_all(const RowwiseKernels& k, Inputs& in) {
  Bytes bytes;
  Array<float> out(in.n);
  float *x = in.x.data(), *y = in.y.data(), *z = in.z.data();
  const auto keep = [&] { append(bytes, out.data(), in.n); };
  k.rms_norm(x, y, 1e-5f, in.n, out.data()), keep();
  k.rms_norm(x, nullptr, 1e-5f, in.n, out.data()), keep();
  k.layer_norm(x, y, z, 1e-5f, in.n, out.data()), keep();
  k.layer_norm(x, y, nullptr, 0.0f, in.n, out.data()), keep();
  k.add(x, y, in.n, out.data()), keep();
  k.scale(x, 1.7f, in.n, out.data()), keep();
  for (const Activation kind : kActivations) {
    k.activate(kind, x, in.n, out.data()), keep();
    k.activate_mul(kind, x, y, in.n, out.data()), keep();
  }
  k.sigmoid_mul(x, y, in.n, out.data()), keep();
  k.softcap(x, 1.1f, 30.0f, in.n, out.data()), keep();
  k.softcap(x, 1.1f, 0.0f, in.n, out.data()), keep();
  const float max = k.row_max(x, in.n);
  append(bytes, &max, 1);
  const float sum = k.exp_sum(x, max, in.n, out.data());
  append(bytes, &sum, 1), keep();
  float moments[2];
  k.exp_moments(x, max, in.n, moments);
  append(bytes, moments, 2);
  return bytes;
}

void row_case(std::int64_t n, Kind kind) {
  constexpr const char* kNames[] = {"plain", "any", "special", "zeros"};
  const std::string name = "rowwise/" + std::to_string(n) + "/" + kNames[static_cast<int>(kind)];
  Random random(xxh64(name.data(), name.size()));
  Inputs in(n);
  for (Array<float>* array : {&in.x, &in.y, &in.z}) fill(random, kind, array->span());
  compare_levels(name, [&](const KernelTable& kernels) { return run_all(kernels.rowwise, in); });
}

void rope_case(std::int64_t half, int interleaved) {
  const std::string name =
      "rope/" + std::to_string(half) + (interleaved ? "/interleaved" : "/halves");
  Random random(xxh64(name.data(), name.size()));
  Inputs in(half);
  Array<float> head(2 * half);
  for (Array<float>* array : {&in.x, &in.y, &head}) fill(random, Kind::special, array->span());
  compare_levels(name, [&](const KernelTable& kernels) {
    Array<float> x(2 * half);
    std::memcpy(x.data(), head.data(), static_cast<std::size_t>(8 * half));
    kernels.rowwise.rope(x.data(), in.x.data(), in.y.data(), half, interleaved);
    Bytes bytes;
    append(bytes, x.data(), x.size());
    return bytes;
  });
}

void rotate_case(std::int64_t d) {
  const std::string name = "rotate/" + std::to_string(d);
  Random random(xxh64(name.data(), name.size()));
  Array<float> from(d);
  fill(random, Kind::plain, from.span());
  compare_levels(name, [&](const KernelTable& kernels) {
    Bytes bytes;
    Array<float> x(d);
    for (int inverse = 0; inverse < 2; ++inverse) {
      std::memcpy(x.data(), from.data(), static_cast<std::size_t>(4 * d));
      kernels.rowwise.rotate(x.data(), d, inverse);
      append(bytes, x.data(), d);
    }
    return bytes;
  });
}

void largest_case(std::int64_t n, Kind kind) {
  const std::string name = "largest/" + std::to_string(n) + (kind == Kind::any ? "/any" : "/plain");
  Random random(xxh64(name.data(), name.size()));
  Array<float> x(n);
  fill(random, kind, x.span());
  compare_levels(name, [&](const KernelTable& kernels) {
    Bytes bytes;
    Array<float> maxima(kMaximaLanes), kept(n);
    kernels.rowwise.lane_maxima(x.data(), n, maxima.data());
    append(bytes, maxima.data(), kMaximaLanes);
    const std::int64_t count = kernels.rowwise.collect(x.data(), maxima[0], n, kept.data());
    append(bytes, kept.data(), count);
    return bytes;
  });
}

}  // namespace

void rowwise_digests() {
  for (const std::int64_t n : kLengths) {
    for (const Kind kind : {Kind::plain, Kind::any, Kind::special, Kind::zeros}) row_case(n, kind);
  }
  for (const std::int64_t half : {1, 3, 8, 20, 64}) {
    rope_case(half, 0);
    rope_case(half, 1);
  }
  for (const std::int64_t d : {16, 48, 64, 80, 128, 208, 496, 512}) rotate_case(d);
  for (const std::int64_t n : kLengths) {
    for (const Kind kind : {Kind::plain, Kind::any}) largest_case(n, kind);
  }
}

}  // namespace musespark::digests
