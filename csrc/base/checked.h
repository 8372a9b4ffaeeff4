// Arithmetic on sizes that come from files and requests: an overflow is an error, never a wrap.
//
//   const auto bytes = checked_mul<CorruptFile>(rows, row_bytes, "tensor 'x': rows * row bytes");
//
// try_* report by return value; checked_* throw the given exception with `what` in the message.
#pragma once

#include <concepts>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "base/errors.h"

namespace musespark {

template <std::integral T>
[[nodiscard]] bool try_add(T a, T b, T* sum) {
  return !__builtin_add_overflow(a, b, sum);
}

template <std::integral T>
[[nodiscard]] bool try_mul(T a, T b, T* product) {
  return !__builtin_mul_overflow(a, b, product);
}

// True and *to = from if the value fits To; signs are respected.
template <std::integral To, std::integral From>
[[nodiscard]] bool try_narrow(From from, To* to) {
  if (!std::in_range<To>(from)) return false;
  *to = static_cast<To>(from);
  return true;
}

namespace detail {
template <class E>
[[noreturn]] void throw_overflow(std::string_view what, const std::string& expression) {
  throw E(std::string(what) + ": " + expression + " does not fit");
}
}  // namespace detail

template <class E = Error, std::integral T>
T checked_add(T a, T b, std::string_view what) {
  T sum;
  if (!try_add(a, b, &sum)) {
    detail::throw_overflow<E>(what, std::to_string(a) + " + " + std::to_string(b));
  }
  return sum;
}

template <class E = Error, std::integral T>
T checked_mul(T a, T b, std::string_view what) {
  T product;
  if (!try_mul(a, b, &product)) {
    detail::throw_overflow<E>(what, std::to_string(a) + " * " + std::to_string(b));
  }
  return product;
}

template <std::integral To, class E = Error, std::integral From>
To checked_narrow(From from, std::string_view what) {
  To to;
  if (!try_narrow(from, &to)) detail::throw_overflow<E>(what, std::to_string(from));
  return to;
}

// `value` rounded up to a multiple of `step` (step > 0, value >= 0).
template <class E = Error, std::integral T>
T checked_round_up(T value, T step, std::string_view what) {
  const T rest = static_cast<T>(value % step);
  return rest == 0 ? value : checked_add<E>(value, static_cast<T>(step - rest), what);
}

}  // namespace musespark
