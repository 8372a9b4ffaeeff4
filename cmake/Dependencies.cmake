# Optional libraries: found and reported by _core.build_info(). A part that uses one links it in its
# own layer and says where else to get it.
find_package(Eigen3 CONFIG QUIET)
find_package(xtensor CONFIG QUIET)
find_package(OpenBLAS CONFIG QUIET)

set(MUSESPARK_EIGEN "absent")
if(Eigen3_FOUND)
  set(MUSESPARK_EIGEN "${Eigen3_VERSION}")
endif()
set(MUSESPARK_XTENSOR "absent")
if(xtensor_FOUND)
  set(MUSESPARK_XTENSOR "${xtensor_VERSION}")
endif()
set(MUSESPARK_BLAS "absent")
if(OpenBLAS_FOUND)
  set(MUSESPARK_BLAS "OpenBLAS ${OpenBLAS_VERSION}")
  set(MUSESPARK_BLAS_LIBRARY ${OpenBLAS_LIBRARIES})
else()
  # Debian ships OpenBLAS without a CMake package, with its version in the configuration header.
  find_file(MUSESPARK_OPENBLAS_CONFIG openblas_config.h
            PATH_SUFFIXES openblas-serial ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-serial)
  if(MUSESPARK_OPENBLAS_CONFIG)
    file(STRINGS "${MUSESPARK_OPENBLAS_CONFIG}" line REGEX "define OPENBLAS_VERSION ")
    string(REGEX MATCH "OpenBLAS [0-9.]+" MUSESPARK_BLAS "${line}")
    find_library(MUSESPARK_BLAS_LIBRARY openblas
                 PATH_SUFFIXES openblas-serial ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-serial)
  endif()
endif()

# The extension _linalg needs both (csrc/linalg); without it, method="error-feedback" of convert
# says so. Debian: libeigen3-dev and libopenblas-serial-dev.
set(MUSESPARK_LINALG OFF)
if(Eigen3_FOUND AND MUSESPARK_BLAS_LIBRARY)
  set(MUSESPARK_LINALG ON)
  get_target_property(MUSESPARK_EIGEN_INCLUDE Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
endif()
