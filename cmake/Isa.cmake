# Compiler flags of a kernel file, by the end of its name: <level>.cc or <anything>_<level>.cc.
# tests/test_architecture.py reads this table too, to compile the same files at -O0.
set(MUSESPARK_ISA_FLAGS_x86_64
    "avx512vnni=-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma -mf16c -mbmi2"
    "avxvnni=-mavxvnni -mavx2 -mfma -mf16c -mbmi2"
    "avx2=-mavx2 -mfma -mf16c -mbmi2"
    "amx=-mamx-tile -mamx-int8 -mavx512vbmi -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma -mf16c -mbmi2")
# GCC 12 warns about its own AVX-512 intrinsics ("'__Y' may be used uninitialized", GCC bug 105593).
foreach(level avx512vnni amx)
  list(TRANSFORM MUSESPARK_ISA_FLAGS_x86_64 APPEND " -Wno-uninitialized -Wno-maybe-uninitialized" REGEX "^${level}=")
endforeach()
set(MUSESPARK_ISA_FLAGS_aarch64
    "i8mm=-march=armv8.2-a+dotprod+fp16+i8mm"
    "neon=-march=armv8.2-a+dotprod+fp16")

# Files of a level are C-style code: no exceptions, so no reference to the C++ runtime either.
set(MUSESPARK_SEALED_FLAGS -fno-exceptions -fno-rtti)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(MUSESPARK_ARCH x86_64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(MUSESPARK_ARCH aarch64)
else()
  message(FATAL_ERROR "musespark supports x86-64 and AArch64, not ${CMAKE_SYSTEM_PROCESSOR}")
endif()

# The level a kernel file is compiled for ("" for baseline files such as scalar.cc), its flags, and
# whether this architecture builds it at all.
function(musespark_isa_of file out_level out_flags out_built)
  get_filename_component(stem "${file}" NAME_WE)
  set(level "")
  set(flags "")
  set(built TRUE)
  foreach(arch x86_64 aarch64)
    foreach(entry IN LISTS MUSESPARK_ISA_FLAGS_${arch})
      string(REGEX MATCH "^([a-z0-9]+)=(.*)$" _ "${entry}")
      set(entry_level "${CMAKE_MATCH_1}")
      set(entry_flags "${CMAKE_MATCH_2}")
      if(stem MATCHES "(^|_)${entry_level}$")
        set(level "${entry_level}")
        set(flags "${entry_flags}")
        if(NOT arch STREQUAL MUSESPARK_ARCH)
          set(built FALSE)
        endif()
      endif()
    endforeach()
  endforeach()
  set(${out_level} "${level}" PARENT_SCOPE)
  set(${out_flags} "${flags}" PARENT_SCOPE)
  set(${out_built} "${built}" PARENT_SCOPE)
endfunction()
