# Finds nvcc: what the caller named (CMAKE_CUDA_COMPILER, CUDACXX), the machine's own (PATH, CUDA_HOME, /usr/local/cuda),
# or that of the pip package `cuda-toolkit` in the Python that runs the build. MIMO_RT_CUDA_FROM_PIP=1 (an environment
# variable) takes the package even where the machine has a toolkit; with pip it also brings the package along, see
# pyproject.toml. Version: third_party/VERSIONS.md.
#
# The package unpacks to site-packages/nvidia/cu13/{bin,include,lib,nvvm}. CMake wants a lib64 and a libcudart.so as well,
# so the build directory gets a toolkit made of links. nvcc looks for its parts beside the name it was called by: bin must
# be a directory of links, not a link.
function(mimo_find_pip_toolkit out)
  find_package(Python COMPONENTS Interpreter QUIET)
  set(root "")
  if(Python_EXECUTABLE)
    execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u, pathlib as p; s = u.find_spec('nvidia'); print(next((d for d in (p.Path(r) / 'cu13' for r in (s.submodule_search_locations if s else ())) if (d / 'bin/nvcc').is_file()), ''), end='')"
      OUTPUT_VARIABLE root)
  endif()
  set(${out} "${root}" PARENT_SCOPE)
endfunction()

function(mimo_link_files from to)
  file(MAKE_DIRECTORY ${to})
  file(GLOB files ${from}/*)
  foreach(path ${files})
    get_filename_component(name ${path} NAME)
    file(CREATE_LINK ${path} ${to}/${name} SYMBOLIC)
  endforeach()
endfunction()

function(mimo_make_pip_toolkit root view)
  file(REMOVE_RECURSE ${view})
  mimo_link_files(${root}/bin ${view}/bin)
  mimo_link_files(${root}/lib ${view}/lib64)
  file(CREATE_LINK ${root}/include ${view}/include SYMBOLIC)
  file(CREATE_LINK ${root}/nvvm ${view}/nvvm SYMBOLIC)
  file(GLOB runtime ${root}/lib/libcudart.so.*)
  if(NOT runtime)
    message(FATAL_ERROR "${root} has nvcc but no lib/libcudart.so.*: pip install 'cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]', "
      "all of one version.")
  endif()
  list(GET runtime 0 runtime)
  file(CREATE_LINK ${runtime} ${view}/lib64/libcudart.so SYMBOLIC)
endfunction()

# Sets CMAKE_CUDA_COMPILER, unless the caller has chosen one or there is none.
function(mimo_find_nvcc)
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
    return()
  endif()
  if(NOT "$ENV{MIMO_RT_CUDA_FROM_PIP}")
    find_program(MIMO_RT_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)
    mark_as_advanced(MIMO_RT_NVCC)
    if(MIMO_RT_NVCC)
      set(CMAKE_CUDA_COMPILER ${MIMO_RT_NVCC} CACHE FILEPATH "CUDA compiler")
      return()
    endif()
  endif()
  mimo_find_pip_toolkit(root)
  if(root)
    set(view ${CMAKE_BINARY_DIR}/cuda-toolkit)
    mimo_make_pip_toolkit(${root} ${view})
    set(CMAKE_CUDA_COMPILER ${view}/bin/nvcc CACHE FILEPATH "CUDA compiler")
    message(STATUS "mimo_rt: nvcc of the pip package in ${root}")
  endif()
endfunction()
