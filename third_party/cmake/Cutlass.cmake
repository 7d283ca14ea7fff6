# Headers of CUTLASS (cutlass/, cute/), for MIMO_RT_CUTLASS=ON: -DMIMO_RT_CUTLASS_INCLUDE=…, the pip package
# nvidia-cutlass of the Python that runs the build, or the wheel of that package, fetched by pip into the build directory
# (PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR: from local wheels). The package's Python code and what it depends on are not wanted:
# only the headers are unpacked. Version: third_party/VERSIONS.md.
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
    message(FATAL_ERROR "${wheel}: expected SHA-256 ${MIMO_RT_CUTLASS_SHA256}, got ${hash}")
  endif()
  file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${directory} PATTERNS "cutlass_library/source/include/*"
    "*/LICENSE.txt")
endfunction()

# The licence asks to go where its code goes, compiled or not. `include`: the headers of an unpacked package.
function(mimo_install_cutlass_licence include)
  set(licence ${include}/../../../nvidia_cutlass-${MIMO_RT_CUTLASS_VERSION}.dist-info/licenses/LICENSE.txt)
  if(EXISTS ${licence})
    install(FILES ${licence} DESTINATION share/licenses/cutlass)
  endif()
endfunction()

# The directory of the headers.
function(mimo_find_cutlass out)
  set(include ${MIMO_RT_CUTLASS_INCLUDE})
  if(NOT include)
    if(NOT Python_EXECUTABLE)
      find_package(Python REQUIRED COMPONENTS Interpreter)
    endif()
    execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] + '/source/include' if s else '', end='')"
      OUTPUT_VARIABLE include)
  endif()
  if(NOT include)
    set(directory ${CMAKE_BINARY_DIR}/cutlass)
    set(include ${directory}/cutlass_library/source/include)
    if(NOT EXISTS ${include}/cutlass/version.h)
      mimo_fetch_cutlass(${directory})
    endif()
  endif()
  if(NOT EXISTS ${include}/cutlass/version.h)
    message(FATAL_ERROR "CUTLASS: expected ${include}/cutlass/version.h, which is not there")
  endif()
  set(${out} ${include} PARENT_SCOPE)
endfunction()
