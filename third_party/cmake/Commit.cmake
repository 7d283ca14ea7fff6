# The commit that benchmark records name.

# Sets `out` to that of the sources in `directory` now, with "+" where there are uncommitted changes; the environment
# variable MIMO_RT_COMMIT is asked first, since a copy of the sources has no .git. Empty: nobody knows it.
function(mimo_commit directory out)
  set(commit "$ENV{MIMO_RT_COMMIT}")
  if(commit AND NOT commit MATCHES "^[0-9A-Za-z._-]+[+]?$")
    message(FATAL_ERROR "MIMO_RT_COMMIT: expected a commit such as 0123456789ab or 0123456789ab+, got '${commit}'.")
  endif()
  if(NOT commit AND EXISTS ${directory}/.git)  # else git would find another repository around these sources
    execute_process(COMMAND git describe --always --exclude=* --abbrev=12 --dirty=+
      WORKING_DIRECTORY ${directory} OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(${out} "${commit}" PARENT_SCOPE)
endfunction()
