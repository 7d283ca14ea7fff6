# Headers of CUTLASS (cutlass/, cute/), for MIMO_RT_CUTLASS=ON: -DMIMO_RT_CUTLASS_INCLUDE=…, the pip package
# nvidia-cutlass of the Python that runs the build, or the wheel of that package, fetched by pip into the build directory
# (PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR: from local wheels). The package's Python code and what it depends on are not wanted:
# only the headers are unpacked. Version: third_party/VERSIONS.md; an installed package of another one is not taken.
set(MIMO_RT_CUTLASS_VERSION 4.2.0.0)
set(MIMO_RT_CUTLASS_SHA256 f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6)  # of the wheel

# Unpacks the headers and the licence of the wheel into `directory`, as pip would.
function(mimo_fetch_cutlass directory)
  set(pip ${Python_EXECUTABLE} -m pip)
  execute_process(COMMAND ${pip} --version RESULT_VARIABLE no_pip OUTPUT_QUIET ERROR_QUIET)
  if(no_pip)  # pip's isolated build environments have none of their own
    find_program(MIMO_RT_PIP NAMES pip3 pip REQUIRED)
    mark_as_advanced(MIMO_RT_PIP)
    set(pip ${MIMO_RT_PIP})
  endif()
  execute_process(COMMAND ${pip} download -q --no-deps --only-binary=:all: -d ${directory}
    nvidia-cutlass==${MIMO_RT_CUTLASS_VERSION} RESULT_VARIABLE failed ERROR_VARIABLE output)
  set(wheel ${directory}/nvidia_cutlass-${MIMO_RT_CUTLASS_VERSION}-py3-none-any.whl)
  if(failed OR NOT EXISTS ${wheel})
    message(FATAL_ERROR "pip cannot fetch nvidia-cutlass==${MIMO_RT_CUTLASS_VERSION}: ${output}"
      "Pass -DMIMO_RT_CUTLASS_INCLUDE=DIR, or build with MIMO_RT_CUTLASS=OFF.")
  endif()
  file(SHA256 ${wheel} hash)
  if(NOT hash STREQUAL MIMO_RT_CUTLASS_SHA256)
    file(REMOVE ${wheel})
    message(FATAL_ERROR "${wheel}: expected SHA-256 ${MIMO_RT_CUTLASS_SHA256}, got ${hash}")
  endif()
  file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${directory} PATTERNS "cutlass_library/source/include/*"
    "*/LICENSE.txt")
endfunction()

# The licence, which asks to go where its code goes, compiled or not: of an unpacked package or of CUTLASS's own sources.
function(mimo_find_cutlass_licence include out)
  set(package ${include}/../../../nvidia_cutlass-${MIMO_RT_CUTLASS_VERSION}.dist-info)
  foreach(licence ${package}/licenses/LICENSE.txt ${package}/LICENSE.txt ${include}/../LICENSE.txt)
    if(EXISTS ${licence})
      set(${out} ${licence} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "CUTLASS in ${include}: expected its licence, which has to be installed with the library, in "
    "${package}/licenses/LICENSE.txt or ${include}/../LICENSE.txt, got neither. Copy LICENSE.txt there.")
endfunction()

# Of the headers in `include`, as "4.2.0"; empty without headers.
function(mimo_cutlass_version include out)
  set(version)
  if(EXISTS ${include}/cutlass/version.h)
    file(STRINGS ${include}/cutlass/version.h lines REGEX "^#define CUTLASS_(MAJOR|MINOR|PATCH) +[0-9]+")
    foreach(part MAJOR MINOR PATCH)
      if("${lines}" MATCHES "CUTLASS_${part} +([0-9]+)")
        list(APPEND version ${CMAKE_MATCH_1})
      endif()
    endforeach()
  endif()
  list(JOIN version "." version)
  set(${out} "${version}" PARENT_SCOPE)
endfunction()

# The directory of the headers, which are of the pinned version.
function(mimo_find_cutlass out)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+\\.[0-9]+" expected ${MIMO_RT_CUTLASS_VERSION})
  set(include ${MIMO_RT_CUTLASS_INCLUDE})
  if(NOT include)
    if(NOT Python_EXECUTABLE)
      find_package(Python REQUIRED COMPONENTS Interpreter)
    endif()
    execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] + '/source/include' if s else '', end='')"
      OUTPUT_VARIABLE include)
    mimo_cutlass_version("${include}" version)
    if(include AND NOT version STREQUAL expected)
      message(STATUS "CUTLASS in ${include} is not taken: expected version ${expected}, got '${version}'")
      set(include)
    endif()
  endif()
  if(NOT include)
    set(directory ${CMAKE_BINARY_DIR}/cutlass-${MIMO_RT_CUTLASS_VERSION})
    set(include ${directory}/cutlass_library/source/include)
    if(NOT EXISTS ${include}/cutlass/version.h)
      mimo_fetch_cutlass(${directory})
    endif()
  endif()
  mimo_cutlass_version(${include} version)
  if(NOT version STREQUAL expected)
    message(FATAL_ERROR "CUTLASS: expected version ${expected} in ${include}/cutlass/version.h, got "
      "'${version}' (empty: there is no such file)")
  endif()
  set(${out} ${include} PARENT_SCOPE)
endfunction()
