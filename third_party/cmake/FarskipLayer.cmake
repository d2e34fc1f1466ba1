# farskip_layer(NAME USES layer... LINK target... [REGISTER function Table header])
#
# One static library per layer: include/farskip/NAME/ is its interface, src/NAME/ its implementation.
# REGISTER generates `void function(Table&)`, which calls `void register_<file>(Table&)` for each
# src/NAME/**/<file>.cpp that defines one, so that adding an op or a kernel family touches no list.
function(farskip_layer name)
  cmake_parse_arguments(arg "" "" "USES;LINK;REGISTER" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  if(name STREQUAL "backend")
    list(FILTER sources EXCLUDE REGEX "src/backend/blas/")
    list(APPEND sources ${CMAKE_SOURCE_DIR}/src/backend/blas/${FARSKIP_BLAS}.cpp)
  elseif(name STREQUAL "comm")
    list(FILTER sources EXCLUDE REGEX "src/comm/mpi/")
    list(APPEND sources ${CMAKE_SOURCE_DIR}/src/comm/mpi/${FARSKIP_MPI}.cpp)
  endif()
  if(arg_REGISTER)
    list(GET arg_REGISTER 0 function)
    list(GET arg_REGISTER 1 table)
    list(GET arg_REGISTER 2 header)
    set(declarations "")
    set(calls "")
    foreach(source IN LISTS sources)
      get_filename_component(family ${source} NAME_WE)
      file(STRINGS ${source} defines REGEX "^void register_${family}\\(${table}& ")
      if(defines)
        string(APPEND declarations "void register_${family}(${table}& table);\n")
        string(APPEND calls "  register_${family}(table);\n")
      endif()
    endforeach()
    set(generated ${CMAKE_BINARY_DIR}/generated/${name}_register.cpp)
    file(CONFIGURE OUTPUT ${generated} CONTENT
"#include \"${header}\"
namespace farskip {
${declarations}
void ${function}(${table}& table);
void ${function}(${table}& table) {
${calls}}
}  // namespace farskip
" @ONLY)
    list(APPEND sources ${generated})
  endif()
  add_library(farskip_${name} STATIC ${sources})
  target_include_directories(farskip_${name} PUBLIC ${CMAKE_SOURCE_DIR}/include)
  list(TRANSFORM arg_USES PREPEND farskip_)
  target_link_libraries(farskip_${name} PUBLIC ${arg_USES} ${arg_LINK} PRIVATE farskip_options)
  farskip_precompile(farskip_${name})
endfunction()
