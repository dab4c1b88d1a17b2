#!/bin/sh
# Real documents to try the data pipeline on: Debian's manuals in English, German and Spanish, as
# HTML pages, some with a .txt twin of the same text (the gold of the extraction benchmark).
# Downloads the packages and unpacks them into FOLDER; installs nothing and needs no root.
#
#   scripts/fetch_debian_corpus.sh FOLDER
set -eu

packages="debian-handbook python3.11-doc installation-guide-amd64
    libreoffice-help-en-us libreoffice-help-de libreoffice-help-es
    debian-reference-en debian-reference-de debian-reference-es
    maint-guide maint-guide-de maint-guide-es"

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "$0: needs $tool (a Debian or Ubuntu system)" >&2; exit 2; }
done
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

cd "$work"
for package in $packages; do
    [ -d "$folder/$package" ] && continue # unpacked by an earlier call
    apt-get download -q "$package" >/dev/null 2>"$work/errors" || {
        cat "$work/errors" >&2
        echo "$0: could not download $package; the package lists may be old (apt-get update)" >&2
        exit 1
    }
    dpkg-deb -x "$package"_*.deb "$work/$package"
    rm -f "$package"_*.deb
    # Pictures, programs and search indexes are of no use here; links would dangle.
    find "$work/$package" -type f ! -name '*.html' ! -name '*.txt' ! -name '*.txt.gz' -delete
    find "$work/$package" -type l -delete
    # Two packages hold all translations, a folder each: keep English, German and Spanish.
    find "$work/$package/usr/share/doc" -type f -regextype posix-extended \
        -regex '.*/(debian-handbook/html|installation-guide-amd64)/[a-z]{2}([-_][A-Z]{2})?/.*' \
        ! -regex '.*/(en|de|es)([-_][A-Z]{2})?/.*' -delete
    find "$work/$package" -name '*.txt.gz' -exec gunzip -f {} +
    find "$work/$package" -depth -type d -empty -delete
    mv "$work/$package" "$folder/$package"
    echo "$package: $(find "$folder/$package" -name '*.html' | wc -l) pages"
done
