# SPDX-License-Identifier: Apache-2.0
# The CUDA part: ON, OFF, or AUTO (where nvcc, cuBLASLt and cuDNN are found). Sets FARSKIP_CUDA_FOUND, enables the
# language, and defines farskip::cuda, which everything that touches the toolkit links.
set(FARSKIP_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (where the toolkit and cuDNN are found), ON or OFF")
set_property(CACHE FARSKIP_CUDA PROPERTY STRINGS AUTO ON OFF)
set(FARSKIP_CUDNN_FRONTEND_DIR ${CMAKE_SOURCE_DIR}/third_party/cudnn_frontend CACHE PATH
    "Folder with the include/ of cuDNN's frontend")
set(FARSKIP_CUDA_FOUND OFF)
set(cuda_missing "")
string(TOUPPER "${FARSKIP_CUDA}" cuda_wanted)

if(cuda_wanted STREQUAL "AUTO" AND FARSKIP_SANITIZE)
  set(cuda_missing "a build without sanitizers")
elseif(NOT cuda_wanted STREQUAL "OFF" AND NOT cuda_wanted STREQUAL "FALSE" AND NOT cuda_wanted STREQUAL "0")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(FARSKIP_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
    if(FARSKIP_NVCC)
      set(CMAKE_CUDA_COMPILER ${FARSKIP_NVCC})
    else()
      set(cuda_missing "nvcc (CUDA Toolkit 13; set CUDA_HOME where it is installed elsewhere)")
    endif()
  endif()
  if(NOT cuda_missing)
    # sm_90a and nothing else: wgmma and setmaxnreg exist on no other architecture, and no card of another one has
    # been tested (make_cuda_device refuses them).
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)
    if(FARSKIP_CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${FARSKIP_CCACHE})
    endif()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # unknown to CMake 3.25.1
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    find_package(CUDAToolkit REQUIRED)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
      set(cuda_missing "CUDA Toolkit 13 or newer (${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION})")
    elseif(NOT TARGET CUDA::cublasLt)
      set(cuda_missing "cuBLASLt (part of the CUDA Toolkit, beside ${CMAKE_CUDA_COMPILER})")
    endif()
    find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ENV CUDNN_HOME ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
    find_library(CUDNN_LIBRARY cudnn HINTS ENV CUDNN_HOME ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
    if(NOT cuda_missing AND NOT (CUDNN_INCLUDE_DIR AND CUDNN_LIBRARY))
      set(cuda_missing "cuDNN 9 (set CUDNN_HOME where it is installed elsewhere)")
    elseif(NOT cuda_missing AND NOT EXISTS ${FARSKIP_CUDNN_FRONTEND_DIR}/include/cudnn_frontend.h)
      set(cuda_missing "the headers of cuDNN's frontend (third_party/fetch_headers.sh gets them)")
    endif()
    find_path(NCCL_INCLUDE_DIR nccl.h HINTS ENV NCCL_HOME ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
    find_library(NCCL_LIBRARY nccl HINTS ENV NCCL_HOME ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
    if(NOT cuda_missing AND NOT (NCCL_INCLUDE_DIR AND NCCL_LIBRARY))
      set(cuda_missing "NCCL (set NCCL_HOME where it is installed elsewhere)")
    endif()
  endif()
  if(NOT cuda_missing)
    set(FARSKIP_CUDA_FOUND ON)
  elseif(NOT cuda_wanted STREQUAL "AUTO")
    message(FATAL_ERROR "FARSKIP_CUDA is ${FARSKIP_CUDA}, but this was not found: ${cuda_missing}. "
                        "third_party/README.md says what the CUDA backend needs; -DFARSKIP_CUDA=OFF builds without it.")
  endif()
endif()

if(FARSKIP_CUDA_FOUND)
  # The version that NCCL's header states, for `farskip doctor`.
  set(nccl_version "")
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h line REGEX "^#define NCCL_${part} +[0-9]+")
    string(REGEX REPLACE ".* ([0-9]+).*" "\\1" number "${line}")
    list(APPEND nccl_version ${number})
  endforeach()
  string(REPLACE ";" "." nccl_version "${nccl_version}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/backend/cuda/device.cpp PROPERTIES
    COMPILE_DEFINITIONS "FARSKIP_NCCL_VERSION=\"${nccl_version}\"")

  add_library(farskip_cuda_libraries INTERFACE)
  add_library(farskip::cuda ALIAS farskip_cuda_libraries)
  # Headers of this layer's own sources: a program that uses the library needs none of them.
  target_include_directories(farskip_cuda_libraries SYSTEM INTERFACE
    "$<BUILD_INTERFACE:${CUDAToolkit_INCLUDE_DIRS}>" "$<BUILD_INTERFACE:${CUDNN_INCLUDE_DIR}>")
  # cuBLASLt and NVRTC, which cuDNN's frontend names in a part that is never run here, are loaded late.
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/backend/cuda/late_libraries.cpp PROPERTIES
    COMPILE_DEFINITIONS "FARSKIP_CUDA_LIBRARY_DIR=\"${CUDAToolkit_LIBRARY_DIR}\"")
  target_link_libraries(farskip_cuda_libraries INTERFACE CUDA::cudart_static ${CUDNN_LIBRARY} ${CMAKE_DL_LIBS})
  target_include_directories(farskip_cuda_libraries SYSTEM INTERFACE
    "$<BUILD_INTERFACE:${FARSKIP_CUDNN_FRONTEND_DIR}/include>")

  # What transports between GPUs need.
  add_library(farskip_nccl INTERFACE)
  add_library(farskip::nccl ALIAS farskip_nccl)
  target_include_directories(farskip_nccl SYSTEM INTERFACE "$<BUILD_INTERFACE:${CUDAToolkit_INCLUDE_DIRS}>"
                                                           "$<BUILD_INTERFACE:${NCCL_INCLUDE_DIR}>")
  target_link_libraries(farskip_nccl INTERFACE CUDA::cudart_static ${NCCL_LIBRARY})

  # nvcc's generated code is full of what -Wpedantic and -Wconversion complain of.
  set(warnings -Wall,-Wextra,-Wshadow)
  if(FARSKIP_WERROR)
    string(APPEND warnings ,-Werror)
    target_compile_options(farskip_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings>")
  endif()
  target_compile_options(farskip_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${warnings}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>"
    "$<$<COMPILE_LANGUAGE:CUDA>:--extended-lambda>"
    # fmt 9 takes nvcc for a compiler without constexpr, and then its own checks of format strings do not compile.
    "$<$<COMPILE_LANGUAGE:CUDA>:-DFMT_USE_CONSTEXPR=1>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>")
  set(cuda_state "compiled, with CUDA ${CMAKE_CUDA_COMPILER_VERSION}, cuDNN ${CUDNN_LIBRARY}, NCCL ${NCCL_LIBRARY}")
elseif(cuda_missing)
  set(cuda_state "left out, for want of ${cuda_missing}")
else()
  set(cuda_state "left out, FARSKIP_CUDA is OFF")
endif()
set(FARSKIP_CUDA_STATE "${cuda_state}" CACHE INTERNAL "Whether the CUDA backend is built; scripts/test.sh repeats it")
message(STATUS "CUDA: ${cuda_state}")
