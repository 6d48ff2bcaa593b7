#compdef bpfimg
# zsh completion for bpfimg
_bpfimg() {
  local -a lines texts shown open open_shown
  local line text
  lines=("${(@f)$("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
  for line in $lines; do
    text=${line%%$'\t'*}
    [[ $text == '~' ]] && { _files; return }
    line="${text}${${line#*$'\t'}:+  (${line#*$'\t'})}"
    if [[ $text == *[/:=] ]]; then open+=("$text") open_shown+=("$line")
    else texts+=("$text") shown+=("$line"); fi
  done
  (( $#texts )) && compadd -l -d shown -a texts
  (( $#open )) && compadd -l -S '' -d open_shown -a open
}
if [[ ${funcstack[1]} == _bpfimg ]]; then _bpfimg "$@"; else compdef _bpfimg bpfimg; fi
