# SPDX-License-Identifier: Apache-2.0
# Flags shared by every target: warnings, instruction set, sanitizers, ccache.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")  # layers may ask for another level (farskip_optimise)
add_library(farskip_options INTERFACE)
# farskip_compile_options(FLAG...): for C++ sources alone; the CUDA compiler's stand below.
function(farskip_compile_options)
  foreach(flag IN LISTS ARGN)
    target_compile_options(farskip_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${flag}>)
  endforeach()
endfunction()
farskip_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # It says where it does not follow "omp simd"; the loop is right all the same.
  farskip_compile_options(-Wno-pass-failed)
endif()
# GCC 13 takes a reference returned for a temporary key to be one into that key; GCC 14 took it out of -Wall.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  farskip_compile_options(-Wno-dangling-reference)
endif()
# GCC 12 sees uninitialised values in its own AVX-512 headers (its bug 105593, mended in 13).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  farskip_compile_options(-Wno-maybe-uninitialized)
endif()
if(FARSKIP_WERROR)
  farskip_compile_options(-Werror)
endif()
# Collecting garbage is a tenth of GCC's time in a file of many templates; without it one takes 0.1 GB more.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  farskip_compile_options(--param=ggc-min-heapsize=1000000)
endif()
# errno is never read after a math function, and setting it keeps square roots from being vectorised.
farskip_compile_options(-fno-math-errno)
# Contraction stays on (FMA is the point of the CPU kernels) but nothing that reassociates: results
# must not depend on how a loop was vectorised for a given thread count.
set(FARSKIP_ARCH native CACHE STRING
    "Processors to compile for: native (this machine's), x86-64-v3, x86-64-v4, or another value of -march")
set_property(CACHE FARSKIP_ARCH PROPERTY STRINGS native x86-64-v3 x86-64-v4)
include(CheckCXXCompilerFlag)
string(MAKE_C_IDENTIFIER "FARSKIP_COMPILES_FOR_${FARSKIP_ARCH}" compiles_for_arch)
check_cxx_compiler_flag("-march=${FARSKIP_ARCH}" ${compiles_for_arch})
if(${compiles_for_arch})
  farskip_compile_options(-march=${FARSKIP_ARCH})
elseif(NOT FARSKIP_ARCH STREQUAL "native")
  message(FATAL_ERROR "FARSKIP_ARCH is \"${FARSKIP_ARCH}\", which ${CMAKE_CXX_COMPILER} does not know. "
                      "Allowed are native, x86-64-v3, x86-64-v4 and the other values of its option -march.")
endif()
# farskip_compile_for_every_processor(SOURCE...): what runs before the processor is known to do.
function(farskip_compile_for_every_processor)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -march=x86-64 SKIP_PRECOMPILE_HEADERS ON)
  endif()
endfunction()
if(FARSKIP_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "FARSKIP_FUZZ needs clang, which has libFuzzer; the compiler is ${CMAKE_CXX_COMPILER}. "
                        "cmake --preset fuzz takes clang++; other builds run the same targets on a fixed number of inputs.")
  endif()
  farskip_compile_options(-fsanitize=fuzzer-no-link)
endif()
if(FARSKIP_SANITIZE)
  string(REPLACE ";" "," sanitizers "${FARSKIP_SANITIZE}")
  farskip_compile_options(-fsanitize=${sanitizers} -fno-omit-frame-pointer)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # sees uninitialised values in std::regex and std::optional then
    farskip_compile_options(-Wno-maybe-uninitialized)
  endif()
  target_link_options(farskip_options INTERFACE -fsanitize=${sanitizers})
endif()
# Only release builds precompile headers: elsewhere a file that leaves out an include of its own does not compile.
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT FARSKIP_SANITIZE)
  option(FARSKIP_PRECOMPILE "Precompile headers of other libraries" ON)
else()
  option(FARSKIP_PRECOMPILE "Precompile headers of other libraries" OFF)
endif()
find_program(FARSKIP_CCACHE ccache)
if(FARSKIP_CCACHE AND FARSKIP_PRECOMPILE)
  # A cached result depends on the precompiled header's content, not on when it was made.
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_SLOPPINESS=pch_defines,time_macros ${FARSKIP_CCACHE})
  target_compile_options(farskip_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)
elseif(FARSKIP_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FARSKIP_CCACHE})
endif()
# Thirty programs are linked, each with the whole library, which is what gold is made for.
include(CheckLinkerFlag)
check_linker_flag(CXX -fuse-ld=gold FARSKIP_HAS_GOLD)
if(FARSKIP_HAS_GOLD)
  add_link_options(-fuse-ld=gold)
endif()
