#!/bin/sh
# install.sh ENVIRONMENT PYTHON [WHEELS]: FastDeploy 2 ($PACKAGES) with what it asks for, from
# Paddle's index ($INDEX) beside pip's own, or from WHEELS alone.
set -eu
environment=$1 python=$2 wheels=${3:-}
rm -rf "$environment"
"$python" -m venv "$environment"
set -- --extra-index-url "$INDEX"
case $wheels in
    file://*) set -- --no-index --find-links "${wheels#file://}" ;;
    ?*) set -- --no-index --find-links "$wheels/" --trusted-host "$(echo "$wheels" | cut -d/ -f3)" ;;
esac
# The words of $PACKAGES are packages.
"$environment/bin/python" -m pip --disable-pip-version-check --no-input --no-cache-dir --quiet \
    --retries 2 --timeout 30 install "$@" $PACKAGES
touch "$environment/.complete"
