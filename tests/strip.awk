# Removes comments from C++ (and the inside of strings): prints FILE:LINE:CODE for every line that holds code.
# A string keeps its quotes, so `#include "a.h"` is printed whole but no word inside other strings is.
FNR == 1 { block = 0 }
{
  code = ""
  include = $0 ~ /^[ \t]*#[ \t]*include/
  for (i = 1; i <= length($0); ++i) {
    two = substr($0, i, 2)
    c = substr($0, i, 1)
    if (block) { if (two == "*/") { block = 0; ++i } }
    else if (two == "/*") { block = 1; ++i }
    else if (two == "//") break
    else if (c == "\"" && !include) {
      for (++i; i <= length($0) && substr($0, i, 1) != "\""; ++i) if (substr($0, i, 1) == "\\") ++i
      code = code "\"\""
    } else if (c == "'" && substr($0, i + 1, 1) == "\\") { j = index(substr($0, i + 3), "'"); code = code "' '"; i += 2 + j }
    else if (c == "'" && substr($0, i + 2, 1) == "'") { code = code "' '"; i += 2 }
    else code = code c
  }
  sub(/[ \t]+$/, "", code)
  if (code ~ /[^ \t]/) {
    print FILENAME ":" FNR ":" code
    whole = $0
    gsub(/[\200-\277]/, "", whole)  # bytes inside a UTF-8 character
    if (limit && length(whole) > limit) print FILENAME ":" FNR ": " length(whole) " columns" >"/dev/stderr"
  }
}
