# bash completion for bpfimg
_bpfimg() {
  local line=${COMP_LINE:0:COMP_POINT} rest word i words=() cur done= item text
  for ((i = 0; i <= COMP_CWORD; i++)); do
    rest=${line#"${line%%[![:space:]]*}"}
    word=${COMP_WORDS[i]}
    [[ $rest == "$word"* ]] || word=$rest
    if ((i == 0)) || [[ $rest != "$line" ]]; then words+=("$word"); else words[${#words[@]} - 1]+=$word; fi
    line=${rest#"$word"}
  done
  words=("${words[@]//[\"\'\\]/}")
  cur=${words[${#words[@]} - 1]}
  [[ $COMP_WORDBREAKS == *:* && $cur == *:* ]] && done=${cur%"${cur##*:}"}
  [[ $COMP_WORDBREAKS == *=* && ${cur#"$done"} == *=* ]] && done=${cur%"${cur##*=}"}
  COMPREPLY=()
  while IFS= read -r item; do
    item=${item%%$'\t'*}
    if [[ $item == '~' ]]; then compopt -o default; return; fi
    printf -v text %q "${item#"$done"}"
    COMPREPLY+=("$text")
  done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[/:=] ]] && compopt -o nospace
  return 0
}
complete -F _bpfimg bpfimg
