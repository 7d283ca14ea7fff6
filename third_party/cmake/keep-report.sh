#!/bin/sh
# Runs a compiler (`keep-report.sh nvcc … -o x.cu.o`) and, if it succeeds, keeps what ptxas reports of each kernel in
# x.cu.o.ptxas, with the time at which it began: tests/python/ptxas_report.py reads it. Of what the compiler says, all
# but the resources goes on to the caller, also what ptxas calls "info" of lost performance.
previous=
for argument; do
  [ "$previous" = -o ] && report=$argument.ptxas
  previous=$argument
done
[ "$report" ] || exec "$@"
rm -f "$report"
: >"$report.begin"
"$@" 2>"$report.new"
status=$?
grep -E -v -e '^ptxas info *: (Compiling entry function|Function properties for|Used [0-9]+ registers|Compile time =)' \
  -e '^ptxas info *: [0-9]+ bytes [gc]mem' -e '^ +[0-9]+ bytes stack frame' "$report.new" >&2
[ $status = 0 ] && touch -r "$report.begin" "$report.new" && mv -f "$report.new" "$report"
rm -f "$report.begin" "$report.new"
exit $status
