// Bytes of keys and values and of steps, from a spec alone.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <string>

#include "cache/page_pool.h"
#include "decode/engine.h"
#include "dict_reader.h"
#include "kv_formats.h"
#include "model/memory.h"
#include "model/prepared.h"
#include "model/text_model.h"
#include "register.h"
#include "spec_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

constexpr std::int64_t kMostStepRows = std::int64_t{1} << 12, kMostSequences = 1 << 16;

ModelSpec checked_spec(const py::object& spec) {
  ModelSpec model_spec = spec_from_python(spec);
  check_spec(model_spec);
  return model_spec;
}

PagePool unfilled_pool(const py::object& spec, const std::string& kv) {
  const ModelSpec model_spec = checked_spec(spec);
  return PagePool(kv_layout_of(model_spec, kv_choice(kv, model_spec)), 0);
}

std::int64_t kv_bytes(const py::object& spec, const std::string& kv, std::int64_t tokens,
                      std::int64_t step) {
  if (tokens < 1) DictReader::fail("tokens", std::to_string(tokens), "at least 1");
  if (step < 1) DictReader::fail("step", std::to_string(step), "at least 1");
  return unfilled_pool(spec, kv).bytes_for(tokens, std::min(step, tokens));
}

std::int64_t shared_kv_bytes(const py::object& spec, const std::string& kv, std::int64_t tokens) {
  if (tokens < 0) DictReader::fail("tokens", std::to_string(tokens), "at least 0");
  return unfilled_pool(spec, kv).shared_bytes(tokens);
}

py::dict step_memory_of(const py::object& spec, std::int64_t rows, std::int64_t tokens,
                        std::int64_t sequences, std::int64_t threads, bool floats, bool two_forms) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    DictReader::fail(name, std::to_string(value), "1 to " + std::to_string(most));
  };
  check("rows", rows, kMostStepRows);
  check("tokens", tokens, std::numeric_limits<std::int32_t>::max());
  check("sequences", sequences, kMostSequences);
  check("threads", threads, kMostSequences);
  const ModelSpec model_spec = checked_spec(spec);
  const StepMemory m =
      step_memory(model_spec, {rows, tokens, sequences, threads, floats, two_forms ? 2 : 1});
  return py::dict(py::arg("activations") = m.activations, py::arg("scratch") = m.scratch,
                  py::arg("ropes") = m.ropes, py::arg("logits") = m.logits);
}

double kv_bytes_per_token(const py::object& spec, const std::string& kv) {
  const PagePool pool = unfilled_pool(spec, kv);
  std::int64_t page = 0;
  for (int i = 0; i < pool.classes(); ++i) page += pool.full_bytes(i, KvForm::body);
  return static_cast<double>(page) / kPageTokens;
}

}  // namespace

void register_sizes(py::module_& m) {
  m.def("kv_bytes", &kv_bytes, py::arg("spec"), py::kw_only(), py::arg("kv"), py::arg("tokens"),
        py::arg("step"),
        "The most bytes of keys and values that one sequence of `tokens` tokens holds, computed in "
        "steps\nof `step`: what the engine reserves for it. Layers with a window count up to it.");
  m.def("shared_kv_bytes", &shared_kv_bytes, py::arg("spec"), py::kw_only(), py::arg("kv"),
        py::arg("tokens"),
        "Bytes that a second sequence with the same first `tokens` tokens does not take.");
  m.attr("last_message") = kLastMessage;
  m.attr("logged_queries") = QueryLog::kRows;
  m.def("kv_bytes_per_token", &kv_bytes_per_token, py::arg("spec"), py::kw_only(), py::arg("kv"),
        "Bytes that a token takes in all layers together once its page is full.");
  m.def("step_memory", &step_memory_of, py::arg("spec"), py::kw_only(), py::arg("rows"),
        py::arg("tokens"), py::arg("sequences"), py::arg("threads"), py::arg("floats"),
        py::arg("two_forms") = false,
        "Bytes that steps take beside weights, keys and values: activations, scratch, ropes, "
        "logits;\nsee csrc/model/memory.h.");
}

}  // namespace musespark
