#!/bin/sh
# Describes one file: describe.sh ITEM OUT writes OUT/description.txt. A stand-in for what you would really run; it uses
# what every Linux has, and says which device it was given.
set -eu
item=$1 out=$2

# Read through redirections: a name that starts with a dash is never taken for an option.
{
    printf 'name    %s\n' "${item##*/}"
    printf 'bytes   %s\n' "$(wc -c <"$item" | tr -d ' ')"
    printf 'lines   %s\n' "$(wc -l <"$item" | tr -d ' ')"
    printf 'sha256  %s\n' "$(sha256sum <"$item" | cut -d ' ' -f 1)"
    printf 'device  %s (%s)\n' "${GAMDOK_DEVICE:-none}" "${GAMDOK_DEVICE_ID:-run by hand}"
} >"$out/description.txt"

# What is printed lands in attempt-<n>.log.
cat "$out/description.txt"
