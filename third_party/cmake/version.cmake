# SPDX-License-Identifier: Apache-2.0
# Writes OUTPUT, the source that states the version (version.cpp.in), unless it is right already. Every build runs this,
# so that the version does not fall behind the commits: cmake -DSOURCE_DIR=… -DVERSION=… -DOUTPUT=… -P version.cmake
#
# The commit comes from archive_commit.txt, which git fills in where it makes an archive, else from git itself.
file(READ ${CMAKE_CURRENT_LIST_DIR}/archive_commit.txt text)
if(text MATCHES "^([0-9a-f]+) ([0-9A-Za-z._+-]*)")
  set(COMMIT ${CMAKE_MATCH_2})  # empty before the first tag
  if(NOT COMMIT)
    set(COMMIT ${CMAKE_MATCH_1})
  endif()
else()
  execute_process(COMMAND git describe --tags --always --dirty WORKING_DIRECTORY ${SOURCE_DIR}
                  OUTPUT_VARIABLE COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT COMMIT)
    set(COMMIT unknown)
  endif()
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/version.cpp.in ${OUTPUT} @ONLY)
