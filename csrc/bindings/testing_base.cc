// _core.testing: csrc/base as pytest needs it.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/aligned.h"
#include "base/checked.h"
#include "base/cpu.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/mapped_file.h"
#include "base/math64.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// An element-wise function of one array.
template <class To, class From, class F>
auto map_array(F f) {
  return [f](const Array<From>& from) {
    Array<To> to(std::vector<py::ssize_t>(from.shape(), from.shape() + from.ndim()));
    const From* source = from.data();
    To* target = to.mutable_data();
    for (py::ssize_t i = 0; i < from.size(); ++i) target[i] = f(source[i]);
    return to;
  };
}

void throw_by_name(const std::string& name) {
  const std::string text = "thrown by a test";
  if (name == "Error") throw Error(text);
  if (name == "InvalidRequest") throw InvalidRequest(text);
  if (name == "UnsupportedModel") throw UnsupportedModel(text);
  if (name == "CorruptFile") throw CorruptFile(text);
  if (name == "ContextOverflow") throw ContextOverflow(text, 9, 4);
  if (name == "MemoryBudgetExceeded") throw MemoryBudgetExceeded(text);
  if (name == "Cancelled") throw Cancelled(text);
  if (name == "DeadlineExceeded") throw DeadlineExceeded(text);
  throw InvalidRequest("no exception is called " + name);
}

void register_codecs(py::module_& m) {
  m.def("f16_to_f32",
        map_array<float, std::uint16_t>([](std::uint16_t v) { return f16_to_f32(v); }));
  m.def("f32_to_f16", map_array<std::uint16_t, float>([](float v) { return f32_to_f16(v); }));
  m.def("bf16_to_f32",
        map_array<float, std::uint16_t>([](std::uint16_t v) { return bf16_to_f32(v); }));
  m.def("f32_to_bf16", map_array<std::uint16_t, float>([](float v) { return f32_to_bf16(v); }));
}

void register_math(py::module_& m) {
  m.def("exp", map_array<double, double>(math64::exp));
  m.def("log", map_array<double, double>(math64::log));
  m.def("sin", map_array<double, double>(math64::sin));
  m.def("cos", map_array<double, double>(math64::cos));
  m.def("pow", [](const Array<double>& x, const Array<double>& y) {
    if (x.size() != y.size()) throw InvalidRequest("pow: arrays of different sizes");
    Array<double> to(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      to.mutable_data()[i] = math64::pow(x.data()[i], y.data()[i]);
    }
    return to;
  });
}

void register_random(py::module_& m) {
  m.def("philox4x32", &philox4x32);
  m.def("random_words", &random_words);
  m.def("random_uniform", &random_uniform);
  m.def("random_uniform64", &random_uniform64);
  m.def("xxh64", [](const std::string& data, std::uint64_t seed) {
    return xxh64(data.data(), data.size(), seed);
  });
  m.def("xxh64_pieces", [](const std::vector<std::string>& pieces, std::uint64_t seed) {
    Xxh64 hash(seed);
    for (const std::string& piece : pieces) hash.update(piece.data(), piece.size());
    return hash.digest();
  });
}

void register_memory(py::module_& m) {
  m.def("checked_add", [](std::int64_t a, std::int64_t b) { return checked_add(a, b, "sum"); });
  m.def("checked_mul",
        [](std::int64_t a, std::int64_t b) { return checked_mul<CorruptFile>(a, b, "product"); });
  m.def("checked_narrow", [](std::int64_t a) { return checked_narrow<std::uint8_t>(a, "byte"); });
  m.def("checked_round_up", [](std::int64_t value, std::int64_t step) {
    return checked_round_up(value, step, "padded");
  });
  m.def("aligned_buffer", [](std::size_t size) {
    AlignedBuffer buffer(size);
    AlignedBuffer moved = std::move(buffer);
    bool zero = true;
    for (std::size_t i = 0; i < moved.size(); ++i) zero &= moved.data()[i] == std::byte{0};
    return py::make_tuple(reinterpret_cast<std::uintptr_t>(moved.data()) % kCacheLine, moved.size(),
                          zero, buffer.size());
  });
  m.def("refuse_allocation", [](std::size_t size) { AlignedBuffer{size}; });
  m.def("read_mapped", [](const std::string& path) {
    MappedFile first(path);
    const MappedFile file = std::move(first);
    return py::bytes(reinterpret_cast<const char*>(file.data()), file.size());
  });
  m.def("read_mapped_slice",
        [](const std::string& path, std::uint64_t offset, std::uint64_t length) {
          const MappedFile file(path);
          const auto part = file.slice(offset, length, "payload");
          return py::bytes(reinterpret_cast<const char*>(part.data()), part.size());
        });
}

// Adds 1 to every slot whose index a task was given; the result must be all ones.
py::tuple pool_visits(ThreadPool& pool, std::int64_t items, std::int64_t chunk) {
  Array<std::int32_t> visits(std::max<std::int64_t>(items, 0));
  std::fill_n(visits.mutable_data(), visits.size(), 0);
  std::vector<std::int64_t> per_worker(static_cast<std::size_t>(pool.threads()), 0);
  std::int32_t* slots = visits.mutable_data();
  {
    const py::gil_scoped_release release;
    pool.run_chunks(items, chunk, [&](std::int64_t begin, std::int64_t end, int worker) {
      for (std::int64_t i = begin; i < end; ++i) ++slots[i];
      per_worker[static_cast<std::size_t>(worker)] += end - begin;
    });
  }
  return py::make_tuple(visits, per_worker);
}

void register_pool(py::module_& m) {
  py::class_<ThreadPool>(m, "ThreadPool")
      .def(py::init<int>(), py::arg("threads"))
      .def_property_readonly("threads", &ThreadPool::threads)
      .def("visits", &pool_visits, py::arg("items"), py::arg("chunk") = 1,
           "How often each item was visited, and how many items each worker took.")
      .def(
          "empty_jobs",
          [](ThreadPool& pool, int jobs, std::int64_t items) {
            for (int i = 0; i < jobs; ++i) pool.run(items, [](std::int64_t, int) {});
          },
          py::call_guard<py::gil_scoped_release>(), "Runs that many jobs that do nothing.")
      .def(
          "failing",
          [](ThreadPool& pool, std::int64_t items, std::int64_t first_bad) {
            pool.run(items, [&](std::int64_t item, int) {
              if (item >= first_bad) throw CorruptFile("item " + std::to_string(item));
            });
          },
          py::call_guard<py::gil_scoped_release>(), "Items from first_bad on throw CorruptFile.")
      .def(
          "nested",
          [](ThreadPool& pool) {
            pool.run(4, [&](std::int64_t, int) { pool.run(2, [](std::int64_t, int) {}); });
          },
          py::call_guard<py::gil_scoped_release>(), "Runs a job inside a job: an error.")
      .def(
          "environments",
          [](ThreadPool& pool, int pause_us) {
            std::vector<FloatEnv::Word> words(static_cast<std::size_t>(pool.threads()), ~0u);
            pool.run(pool.threads() * 8, [&](std::int64_t, int worker) {
              std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
              words[static_cast<std::size_t>(worker)] = FloatEnv::read() & ~FloatEnv::kStickyFlags;
            });
            return words;
          },
          py::call_guard<py::gil_scoped_release>(),
          "The floating point control word inside a job, by worker; all ones: took no item.");
}

void register_float_env(py::module_& m) {
  m.attr("float_env_default") = FloatEnv::kDefault;
  m.attr("float_env_flush_to_zero") = FloatEnv::kFlushToZero;
  m.def("read_float_env", [] { return FloatEnv::read() & ~FloatEnv::kStickyFlags; });
  m.def("write_float_env", &FloatEnv::write);
  m.def(
      "multiply_in_pool",
      [](ThreadPool& pool, float a, float b) {
        float product = 0;
        pool.run(1, [&](std::int64_t, int) {
          const volatile float x = a, y = b;
          product = x * y;
        });
        return product;
      },
      "a * b computed in a job.");
  m.def("multiply", [](float a, float b) {
    const volatile float x = a, y = b;
    return x * y;
  });
}

void register_cpu(py::module_& m) {
  m.def("choose_isa_levels", [](const std::vector<std::pair<std::string, bool>>& machine,
                                const py::object& forced) {
    std::vector<IsaStatus> report;
    for (const IsaStatus& status : isa_report()) {
      for (const auto& [name, present] : machine) {
        if (name == isa_name(status.isa)) {
          report.push_back({status.isa, present, present ? "" : "the test says so"});
        }
      }
    }
    const std::string value = forced.is_none() ? "" : py::cast<std::string>(forced);
    std::vector<std::string> names;
    for (const Isa isa : choose_isa_levels(report, forced.is_none() ? nullptr : value.c_str())) {
      names.emplace_back(isa_name(isa));
    }
    return names;
  });
}

}  // namespace

void register_base_testing(py::module_& m) {
  m.def("throw_error", &throw_by_name, "Throws the core exception of this name.");
  register_codecs(m);
  register_math(m);
  register_random(m);
  register_memory(m);
  register_pool(m);
  register_float_env(m);
  register_cpu(m);
}

}  // namespace musespark
