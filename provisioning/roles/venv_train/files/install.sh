#!/bin/sh
# install.sh ENVIRONMENT PYTHON LOCKS [WHEELS]: a virtual environment from LOCKS.txt (and
# LOCKS-data.txt, without dependencies), by hash. With WHEELS (a folder's URL) nothing else is
# asked; without, pip's configured index is. Ends whole (.complete) or is begun anew next time.
set -eu
environment=$1 python=$2 locks=$3 wheels=${4:-}
rm -rf "$environment"
"$python" -m venv "$environment"
pip() {
    "$environment/bin/python" -m pip --disable-pip-version-check --no-input --no-cache-dir --quiet \
        --retries 2 --timeout 30 "$@"
}
set --
case $wheels in
    file://*) set -- --no-index --find-links "${wheels#file://}" ;;
    ?*) set -- --no-index --find-links "$wheels/" --trusted-host "$(echo "$wheels" | cut -d/ -f3)" ;;
esac
pip install "$@" --require-hashes --no-deps -r "$locks.txt"
if [ -s "$locks-data.txt" ]; then
    pip install "$@" --require-hashes --no-deps -r "$locks-data.txt"
fi
# A bundle's lock holds these too, by hash; online they come by version from Paddle's index.
if [ -z "$wheels" ]; then
    for wheel in $VENDOR; do
        case $wheel in
            fastdeploy-gpu*) pip uninstall --yes fastdeploy-python || true
                pip install --no-deps --find-links "$VENDOR_LINKS" "$wheel" ;;
            *) pip install --no-deps --index-url "$VENDOR_INDEX" "$wheel" ;;
        esac
    done
fi
touch "$environment/.complete"
