// The exceptions the core throws. One class per class of musespark.errors;
// bindings/register_base.cc maps them one to one, so a message written here is what the Python user
// reads.
//
// A message names the argument or field, the value received and the values allowed.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace musespark {

// Base of everything the core throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The model is of a kind this version cannot run.
class UnsupportedModel : public Error {
 public:
  using Error::Error;
};

// A model, packed or session file is truncated, inconsistent or hostile.
class CorruptFile : public Error {
 public:
  using Error::Error;
};

// An argument is wrong.
class InvalidRequest : public Error {
 public:
  using Error::Error;
};

// The request does not fit the context. Both numbers are tokens.
class ContextOverflow : public InvalidRequest {
 public:
  ContextOverflow(const std::string& message, std::int64_t needed, std::int64_t limit)
      : InvalidRequest(message), needed_(needed), limit_(limit) {}
  std::int64_t needed() const { return needed_; }
  std::int64_t limit() const { return limit_; }

 private:
  std::int64_t needed_;
  std::int64_t limit_;
};

// An allocation would pass the memory budget, or the system refused it.
class MemoryBudgetExceeded : public Error {
 public:
  using Error::Error;
};

// The caller cancelled the request.
class Cancelled : public Error {
 public:
  using Error::Error;
};

// A deadline passed.
class DeadlineExceeded : public Error {
 public:
  using Error::Error;
};

// A system call on a file failed; becomes OSError(error_number, text, path) and so
// FileNotFoundError, PermissionError and so on in Python.
class IoError : public Error {
 public:
  IoError(const std::string& message, int error_number, std::string path)
      : Error(message), error_number_(error_number), path_(std::move(path)) {}
  int error_number() const { return error_number_; }
  const std::string& path() const { return path_; }

 private:
  int error_number_;
  std::string path_;
};

}  // namespace musespark
