#!/bin/sh
# Runs a compiler (`keep-report.sh nvcc … -o x.cu.o`) and keeps what ptxas reports of each kernel in x.cu.o.ptxas, where
# tests/python/test_cuda_kernels.py looks. Everything else the compiler says goes on to the caller.
previous=
for argument; do
  [ "$previous" = -o ] && report=$argument.ptxas
  previous=$argument
done
[ "$report" ] || exec "$@"
"$@" 2>"$report"
status=$?
grep -v -e '^ptxas info' -e '^    [0-9]* bytes stack frame' "$report" >&2
exit $status
