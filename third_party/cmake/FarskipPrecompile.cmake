# SPDX-License-Identifier: Apache-2.0
# Headers that most files take from outside are parsed once, which is a third of a build's time. They are a matter of
# time alone: files name every header that they use, and builds without FARSKIP_PRECOMPILE hold them to that. What is
# listed costs every file: nlohmann/json.hpp, which a quarter of them include, would take more from the others than it
# gives to these (0.7 s each, against 1.3 s that the list saves).
set(farskip_precompiled_headers
  <algorithm> <array> <cmath> <cstdint> <cstring> <filesystem> <functional> <limits> <map> <memory> <numeric>
  <optional> <set> <span> <string> <string_view> <unordered_map> <utility> <vector> <fmt/format.h>)
if(FARSKIP_PRECOMPILE)
  # GCC takes the header only where the same macros are defined, and OpenMP defines one.
  target_link_libraries(farskip_options INTERFACE OpenMP::OpenMP_CXX)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/precompiled.cpp CONTENT "" @ONLY)
endif()

# farskip_optimise(TARGET LEVEL): release builds compile TARGET with LEVEL (-O1, -O2, -O3), and with the precompiled
# headers of that level: GCC 13 and later refuse those of another.
function(farskip_optimise target level)
  set(option $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:${level}>)
  target_compile_options(${target} PRIVATE ${option})
  if(FARSKIP_PRECOMPILE)
    set(headers farskip_precompiled${level})
    if(NOT TARGET ${headers})
      add_library(${headers} OBJECT ${CMAKE_BINARY_DIR}/generated/precompiled.cpp)
      target_link_libraries(${headers} PRIVATE spdlog::spdlog farskip_options)
      target_compile_options(${headers} PRIVATE ${option})
      target_precompile_headers(${headers} PRIVATE ${farskip_precompiled_headers})
    endif()
    target_precompile_headers(${target} REUSE_FROM ${headers})
  endif()
endfunction()
