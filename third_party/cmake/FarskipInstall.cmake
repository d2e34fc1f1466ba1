# SPDX-License-Identifier: Apache-2.0
# farskip_install(LAYER...): `cmake --install` puts the program, these layers as static libraries, the headers and a
# package there, so that another project says find_package(farskip) and links farskip::farskip.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
function(farskip_install)
  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/farskip)
  add_library(farskip_library INTERFACE)
  set_target_properties(farskip_library PROPERTIES EXPORT_NAME farskip)
  set(targets farskip_library)
  foreach(layer IN LISTS ARGN)
    set_target_properties(farskip_${layer} PROPERTIES EXPORT_NAME ${layer})
    target_link_libraries(farskip_library INTERFACE farskip_${layer})
    list(APPEND targets farskip_${layer})
  endforeach()
  if(FARSKIP_CUDA_FOUND)
    list(APPEND targets farskip_cuda_libraries farskip_nccl)
  endif()
  install(TARGETS ${targets} EXPORT farskip_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/farskip)
  install(EXPORT farskip_targets NAMESPACE farskip:: FILE farskipTargets.cmake DESTINATION ${package})
  install(TARGETS farskip RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/farskip DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  configure_package_config_file(${CMAKE_SOURCE_DIR}/third_party/cmake/farskipConfig.cmake.in
                                ${CMAKE_BINARY_DIR}/generated/farskipConfig.cmake INSTALL_DESTINATION ${package})
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/generated/farskipConfigVersion.cmake
                                   COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_BINARY_DIR}/generated/farskipConfig.cmake
                ${CMAKE_BINARY_DIR}/generated/farskipConfigVersion.cmake
                ${CMAKE_SOURCE_DIR}/third_party/cmake/FarskipDependencies.cmake DESTINATION ${package})
endfunction()
