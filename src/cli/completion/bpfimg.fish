# fish completion for bpfimg
function __bpfimg_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] __complete $words[2..-1] "$current" 2>/dev/null)
    if string match -q -- '~*' $found[1]
        complete -C "cat $current"
    else
        printf '%s\n' $found
    end
end
complete -c bpfimg -f -a '(__bpfimg_complete)'
