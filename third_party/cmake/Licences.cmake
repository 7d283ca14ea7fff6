# Licence texts of others' code that is compiled in, which ask to go where it goes. Version and origin: third_party/VERSIONS.md.

# Installs the licence of a pip package of the Python that runs the build.
function(mimo_install_licence package)
  execute_process(COMMAND ${Python_EXECUTABLE} -c
    "import importlib.metadata as m; print(next(f.locate() for f in m.files('${package}') if f.name.startswith('LICENSE')), end='')"
    OUTPUT_VARIABLE licence ERROR_QUIET)
  if(EXISTS "${licence}")
    install(FILES ${licence} DESTINATION share/licenses/${package})
  else()
    message(WARNING "No licence of ${package} among Python's packages: one who passes this build on has to add it.")
  endif()
endfunction()
