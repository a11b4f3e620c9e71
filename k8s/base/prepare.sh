#!/usr/bin/env bash
# Make the run if there is none, and add files that are new. What a run was asked to compute stays as it is.
set -euo pipefail
folder="${SETTINGS:-/settings}"

options=()
take() { # the lines of the files, without comments, as options
    local file line
    for file in "$@"; do # one by one: the last line of a file may have no end, and is not the start of the next
        while IFS= read -r line || [[ -n "$line" ]]; do
            line="${line%$'\r'}"
            [[ "$line" =~ ^[[:space:]]*(#|$) ]] || options+=(--set "$line")
        done < "$file"
    done
}

state=0
cryoscale status "$RUN" --json > /dev/null || state=$?
case "$state" in
    0 | 1) echo "prepare: $RUN is there; its parameters stay" ;;
    2) echo "prepare: making $RUN"; take "$folder/run.settings" ;;
    *) exit "$state" ;; # storage that does not answer is no reason to make another run
esac
shopt -s nullglob
where=("$folder"/*.where)
[[ ${#where[@]} -eq 0 ]] || take "${where[@]}"
# A pattern each; cryoscale expands them, the shell does not.
set -f
# shellcheck disable=SC2086
exec cryoscale init "$RUN" $INPUTS "${options[@]}"
