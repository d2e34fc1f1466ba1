# SPDX-License-Identifier: Apache-2.0
# Outside libraries, all from the distribution (Debian 12 and Ubuntu 24.04 differ in the names of a
# few targets; the farskip::* aliases below are the only names the rest of the build uses).
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)

find_package(yaml-cpp REQUIRED)
add_library(farskip::yaml_cpp INTERFACE IMPORTED)
if(TARGET yaml-cpp::yaml-cpp)
  target_link_libraries(farskip::yaml_cpp INTERFACE yaml-cpp::yaml-cpp)  # 0.8
else()
  target_link_libraries(farskip::yaml_cpp INTERFACE yaml-cpp)  # 0.7
endif()

find_package(Eigen3 3.3 REQUIRED NO_MODULE)
add_library(farskip::eigen INTERFACE IMPORTED)
target_link_libraries(farskip::eigen INTERFACE Eigen3::Eigen)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(farskip::eigen INTERFACE -Wno-uninitialized)  # its bug 105593 again (FarskipOptions)
endif()

pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
add_library(farskip::xxhash ALIAS PkgConfig::xxhash)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
add_library(farskip::pcre2 ALIAS PkgConfig::pcre2)
pkg_check_modules(zlib REQUIRED IMPORTED_TARGET zlib)
add_library(farskip::zlib ALIAS PkgConfig::zlib)

# Messages between ranks: MPI where it is installed; otherwise src/comm/mpi/no_mpi.cpp, which says that this build
# runs on one rank. (Open MPI's old C++ bindings do not compile without warnings.)
add_library(farskip::mpi INTERFACE IMPORTED)
option(FARSKIP_WITHOUT_MPI "Build without MPI even where it is installed" OFF)
if(NOT FARSKIP_WITHOUT_MPI)
  find_package(MPI COMPONENTS CXX)
endif()
if(MPI_CXX_FOUND)
  set(FARSKIP_MPI mpi)
  target_link_libraries(farskip::mpi INTERFACE MPI::MPI_CXX)
  target_compile_definitions(farskip::mpi INTERFACE OMPI_SKIP_MPICXX)
else()
  set(FARSKIP_MPI no_mpi)
endif()
message(STATUS "Messages between ranks: ${FARSKIP_MPI}")

# HTTP for `farskip serve`: cpp-httplib where it is installed; otherwise src/serve/http/no_http.cpp, which says that this
# build has none.
pkg_check_modules(cpp_httplib QUIET cpp-httplib)
if(cpp_httplib_FOUND)
  set(FARSKIP_HTTP httplib)
  # Its header (0.18, Debian 13) calls OpenSSL by itself, and its own list of libraries leaves that out.
  pkg_check_modules(httplib_crypto QUIET libcrypto)
else()
  set(FARSKIP_HTTP no_http)
  message(STATUS "cpp-httplib is missing (libcpp-httplib-dev): this build has no farskip serve")
endif()
message(STATUS "HTTP: ${FARSKIP_HTTP}")
