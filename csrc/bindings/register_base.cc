// Errors, the machine, the build; and in `testing` the parts of csrc/base that pytest calls.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "base/cores.h"
#include "base/cpu.h"
#include "build_info.h"
#include "errors_to_python.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = MUSESPARK_BUILD_COMPILER;
  info["build_type"] = MUSESPARK_BUILD_TYPE;
  info["flags"] = MUSESPARK_BUILD_FLAGS;
  info["kernel_flags"] = MUSESPARK_BUILD_KERNEL_FLAGS;
  info["arch"] = MUSESPARK_BUILD_ARCH;
  info["sanitize"] = MUSESPARK_BUILD_SANITIZE;
  info["pybind11"] = MUSESPARK_BUILD_PYBIND11;
  info["eigen"] = MUSESPARK_BUILD_EIGEN;
  info["xtensor"] = MUSESPARK_BUILD_XTENSOR;
  info["blas"] = MUSESPARK_BUILD_BLAS;
  return info;
}

py::list isa_report_list() {
  py::list rows;
  for (const IsaStatus& status : isa_report()) {
    rows.append(py::make_tuple(isa_name(status.isa), status.present, status.reason));
  }
  return rows;
}

std::vector<std::string> isa_level_names() {
  std::vector<std::string> names;
  for (const Isa isa : isa_levels()) names.emplace_back(isa_name(isa));
  return names;
}

py::dict cores_dict(const std::string& root) {
  const CoreCount cores = count_cores(root);
  return py::dict(py::arg("online") = cores.online, py::arg("affinity") = cores.affinity,
                  py::arg("quota") = cores.quota, py::arg("usable") = cores.usable);
}

}  // namespace

void register_base(py::module_& m) {
  py::register_local_exception_translator(error_to_python);
  m.def("build_info", &build_info,
        "What the extension was built with: compiler, flags, and the optional libraries found.");
  m.def("isa_report", &isa_report_list,
        "(level, present, why it is absent) for every instruction-set level, best first.");
  m.def("isa_levels", &isa_level_names,
        "The levels in use, best first: those present, from MUSESPARK_ISA down if that is set.\n"
        "Raises Error for an unknown or absent MUSESPARK_ISA.");
  m.def("cpu_model", &cpu_model, "The processor's own name, or an empty string.");
  m.def("count_cores", &cores_dict, py::kw_only(), py::arg("root") = "",
        "online, affinity, quota (cores, 0 for none) and usable: the default number of threads.\n"
        "`root` stands in front of /proc and /sys.");
  auto testing = m.def_submodule("testing");
  register_base_testing(testing);
}

}  // namespace musespark
