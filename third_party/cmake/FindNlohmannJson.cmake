# Headers of nlohmann/json: -DMIMO_RT_NLOHMANN_INCLUDE=…, the pinned PyPI package nlohmann-json (headers only) of the
# Python that runs the build, or a CMake package. Defines the target nlohmann_json_headers.
set(MIMO_RT_NLOHMANN_INCLUDE "" CACHE PATH "directory that holds nlohmann/json.hpp")
set(nlohmann_dir ${MIMO_RT_NLOHMANN_INCLUDE})
if(NOT nlohmann_dir)
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_EXECUTABLE)
    execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('nlohmann_json'); print(s.submodule_search_locations[0] + '/include' if s else '', end='')"
      OUTPUT_VARIABLE nlohmann_dir)
  endif()
endif()
if(NOT nlohmann_dir)
  find_package(nlohmann_json 3.11 QUIET)
  if(TARGET nlohmann_json::nlohmann_json)
    get_target_property(nlohmann_dir nlohmann_json::nlohmann_json INTERFACE_INCLUDE_DIRECTORIES)
    list(GET nlohmann_dir 0 nlohmann_dir)
  endif()
endif()
if(NOT EXISTS "${nlohmann_dir}/nlohmann/json.hpp")
  message(FATAL_ERROR "nlohmann/json.hpp not found (looked in '${nlohmann_dir}'). "
    "pip install nlohmann-json==3.12.0, or pass -DMIMO_RT_NLOHMANN_INCLUDE=DIR.")
endif()
add_library(nlohmann_json_headers INTERFACE)
target_include_directories(nlohmann_json_headers SYSTEM INTERFACE ${nlohmann_dir})
set(NlohmannJson_FOUND TRUE)
