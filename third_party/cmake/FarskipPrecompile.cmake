# farskip_precompile(TARGET): TARGET takes the precompiled headers of other libraries, which are parsed once for
# all targets. They are a matter of time alone: files name every header that they use, and builds without
# FARSKIP_PRECOMPILE hold them to that. What is listed costs every file: nlohmann/json.hpp, which a quarter of
# them include, would take more from the others than it gives to these (0.7 s each, against 1.3 s that the list saves).
set(farskip_precompiled_headers
  <algorithm> <array> <cmath> <cstdint> <cstring> <filesystem> <functional> <limits> <map> <memory> <numeric>
  <optional> <set> <span> <string> <string_view> <unordered_map> <utility> <vector> <fmt/format.h>)

if(FARSKIP_PRECOMPILE)
  # GCC takes the header only where the same macros are defined, and OpenMP defines one.
  target_link_libraries(farskip_options INTERFACE OpenMP::OpenMP_CXX)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/precompiled.cpp CONTENT "" @ONLY)
  add_library(farskip_precompiled OBJECT ${CMAKE_BINARY_DIR}/generated/precompiled.cpp)
  target_link_libraries(farskip_precompiled PRIVATE spdlog::spdlog farskip_options)
  target_precompile_headers(farskip_precompiled PRIVATE ${farskip_precompiled_headers})
endif()

function(farskip_precompile target)
  if(FARSKIP_PRECOMPILE)
    target_precompile_headers(${target} REUSE_FROM farskip_precompiled)
  endif()
endfunction()
