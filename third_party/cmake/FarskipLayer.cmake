# SPDX-License-Identifier: Apache-2.0
# farskip_generate_register(OUT function Table header PREFIX source...)
#
# Generates a source, named in OUT, with `void function(Table&)`, which calls `void register_<PREFIX><file>(Table&)` for
# each source <file> that defines one, so that adding an op or a kernel family touches no list.
function(farskip_generate_register out function table header prefix)
  set(declarations "")
  set(calls "")
  foreach(source IN LISTS ARGN)
    get_filename_component(family ${source} NAME_WE)
    set(family ${prefix}${family})
    file(STRINGS ${source} defines REGEX "^void register_${family}\\(${table}& ")
    if(defines)
      string(APPEND declarations "void register_${family}(${table}& table);\n")
      string(APPEND calls "  register_${family}(table);\n")
    endif()
  endforeach()
  set(generated ${CMAKE_BINARY_DIR}/generated/${function}.cpp)
  file(CONFIGURE OUTPUT ${generated} CONTENT
"#include \"${header}\"
namespace farskip {
${declarations}
void ${function}(${table}& table);
void ${function}(${table}& table) {
${calls}}
}  // namespace farskip
" @ONLY)
  set(${out} ${generated} PARENT_SCOPE)
endfunction()

# farskip_layer(NAME [OPTIMISE -O1|-O2|-O3] USES layer... LINK target... [REGISTER function Table header])
#
# One static library per layer, src/NAME/. Headers that another project may include lie in include/farskip/NAME/ and are
# installed; all others lie beside their sources and are included as "NAME/file.h".
# OPTIMISE: see farskip_optimise; -O2 unless it is given.
# REGISTER: see farskip_generate_register, of src/NAME/**/*.cpp.
function(farskip_layer name)
  cmake_parse_arguments(arg "" "OPTIMISE" "USES;LINK;REGISTER" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  if(name STREQUAL "backend")
    list(FILTER sources EXCLUDE REGEX "src/backend/(cuda/|no_cuda)")
    if(NOT FARSKIP_CUDA_FOUND)
      list(APPEND sources ${CMAKE_SOURCE_DIR}/src/backend/no_cuda.cpp)
    endif()
  elseif(name STREQUAL "comm")
    list(FILTER sources EXCLUDE REGEX "src/comm/(mpi/|cuda/|no_cuda)")
    list(APPEND sources ${CMAKE_SOURCE_DIR}/src/comm/mpi/${FARSKIP_MPI}.cpp)
    if(FARSKIP_CUDA_FOUND)
      file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/comm/cuda/*.cpp)
      list(APPEND sources ${cuda_sources})
    else()
      list(APPEND sources ${CMAKE_SOURCE_DIR}/src/comm/no_cuda.cpp)
    endif()
  elseif(name STREQUAL "serve")
    list(FILTER sources EXCLUDE REGEX "src/serve/http/")
    list(APPEND sources ${CMAKE_SOURCE_DIR}/src/serve/http/${FARSKIP_HTTP}.cpp)
  endif()
  if(arg_REGISTER)
    list(GET arg_REGISTER 0 function)
    list(GET arg_REGISTER 1 table)
    list(GET arg_REGISTER 2 header)
    farskip_generate_register(generated ${function} ${table} ${header} "" ${sources})
    list(APPEND sources ${generated})
  endif()
  add_library(farskip_${name} STATIC ${sources})
  target_include_directories(farskip_${name} PUBLIC
    $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/include> $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/src>
    $<INSTALL_INTERFACE:include>)
  target_compile_features(farskip_${name} PUBLIC cxx_std_20)
  list(TRANSFORM arg_USES PREPEND farskip_)
  target_link_libraries(farskip_${name} PUBLIC ${arg_USES} ${arg_LINK}
                                          PRIVATE $<BUILD_INTERFACE:farskip_options>)
  if(NOT arg_OPTIMISE)
    set(arg_OPTIMISE -O2)
  endif()
  farskip_optimise(farskip_${name} ${arg_OPTIMISE})
endfunction()

# farskip_add_cuda(NAME function Table header): adds src/NAME/cuda/ and its folders to a layer: kernels in *.cu, those that
# are registered each with its `void register_cuda_<file>(Table&)`, host code in *.cpp.
function(farskip_add_cuda name function table header)
  file(GLOB_RECURSE kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/cuda/*.cu)
  file(GLOB_RECURSE host CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/cuda/*.cpp)
  farskip_generate_register(generated ${function} ${table} ${header} cuda_ ${kernels})
  target_sources(farskip_${name} PRIVATE ${kernels} ${host} ${generated})
  target_link_libraries(farskip_${name} PRIVATE farskip::cuda)
endfunction()

# farskip_embed_text(TARGET FILE SYMBOL): adds a source with the text of FILE as `const char* const farskip::SYMBOL`.
function(farskip_embed_text target file symbol)
  file(READ ${CMAKE_SOURCE_DIR}/${file} text)
  set(generated ${CMAKE_BINARY_DIR}/generated/${symbol}.cpp)
  file(CONFIGURE OUTPUT ${generated} CONTENT
"namespace farskip {
extern const char* const ${symbol};
const char* const ${symbol} = R\"__text__(@text@)__text__\";
}  // namespace farskip
" @ONLY)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${file})
  target_sources(${target} PRIVATE ${generated})
endfunction()

# farskip_state_version(TARGET): adds the source that knows version and commit (base/version.h).
function(farskip_state_version target)
  set(generated ${CMAKE_BINARY_DIR}/generated/version.cpp)
  add_custom_target(farskip_version BYPRODUCTS ${generated}
    COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${CMAKE_SOURCE_DIR} -DVERSION=${PROJECT_VERSION} -DOUTPUT=${generated}
            -P ${CMAKE_SOURCE_DIR}/third_party/cmake/version.cmake
    COMMENT "" VERBATIM)
  target_sources(${target} PRIVATE ${generated})
  add_dependencies(${target} farskip_version)
endfunction()
