#!/bin/sh
# install.sh ENVIRONMENT PYTHON LOCK [WHEELS]: FastDeploy 2 with all that it asks for. With WHEELS (a
# folder's URL) by hash from there, as LOCK says; without, $PACKAGES by version from Paddle's index
# ($INDEX) beside pip's own. Ends whole (.complete) or is begun anew next time.
set -eu
environment=$1 python=$2 lock=$3 wheels=${4:-}
rm -rf "$environment"
"$python" -m venv "$environment"
case $wheels in
    # The words of $PACKAGES are packages.
    "") set -- --extra-index-url "$INDEX" $PACKAGES ;;
    file://*) set -- --no-index --find-links "${wheels#file://}" --require-hashes --no-deps -r "$lock" ;;
    *) set -- --no-index --find-links "$wheels/" --trusted-host "$(echo "$wheels" | cut -d/ -f3)" \
        --require-hashes --no-deps -r "$lock" ;;
esac
"$environment/bin/python" -m pip --disable-pip-version-check --no-input --no-cache-dir --quiet \
    --retries 2 --timeout 30 install "$@"
touch "$environment/.complete"
