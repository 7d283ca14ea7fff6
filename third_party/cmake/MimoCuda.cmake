# MIMO_RT_CUDA: OFF, ON (fail when nvcc is missing), AUTO (use it when it is there). There is no CUDA engine in this
# version yet: what is built is the device query and the first kernels, so that toolchain, packaging and the "cuda"
# backend's answer are real.
set(MIMO_RT_HAVE_CUDA OFF)
if(NOT MIMO_RT_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  include(CudaToolchain)
  mimo_find_nvcc()
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # set per target; also keeps CMake from probing "native"
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      set(MIMO_RT_HAVE_CUDA ON)
    elseif(MIMO_RT_CUDA STREQUAL "ON")
      message(FATAL_ERROR "nvcc: expected >= 12.8 (sm_100a), got ${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
  elseif(MIMO_RT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MIMO_RT_CUDA=ON, but no CUDA compiler was found. Install CUDA >= 12.8, set CUDACXX, "
      "or build with MIMO_RT_CUDA_FROM_PIP=1.")
  endif()
endif()
if(MIMO_RT_HAVE_CUDA)
  if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.26)
    set(CMAKE_CUDA_STANDARD 20)
  else()  # CMake 3.25 knows no CUDA20 for nvcc
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA17_STANDARD_COMPILE_OPTION "-std=c++20")
  endif()
endif()

function(mimo_link_cuda target)
  if(NOT MIMO_RT_HAVE_CUDA)
    return()
  endif()
  find_package(CUDAToolkit 12.8 REQUIRED)
  if(NOT TARGET mimo_rt_cuda)
    add_library(mimo_rt_cuda OBJECT ${MIMO_RT_CUDA_SOURCES})
  endif()
  target_include_directories(mimo_rt_cuda PRIVATE include csrc)
  set_target_properties(mimo_rt_cuda PROPERTIES CUDA_ARCHITECTURES "90a-real;100a-real"
    CUDA_VISIBILITY_PRESET hidden)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:mimo_rt_cuda>)
  # Explicit and static: the implicit cudart is lost with an object library, and the wheel must load without a driver.
  set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY None)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  target_link_options(${target} PRIVATE LINKER:--exclude-libs,ALL)
endfunction()
