#!/usr/bin/env bash
# Installs the Debian packages that the tests use if this is Debian and the user is root; otherwise names what is missing.
# In CI (CI=true) a missing one is a failure; on a developer's machine the tests that need it say so themselves.
set -euo pipefail

declare -A package_of=(
    [curl]=curl
    [gcc]=gcc
    [java]=openjdk-17-jre-headless
    [chromium-headless-shell]=chromium-headless-shell
    [kcat]=kcat
    [mvn]=maven
    [nginx]=nginx-light
    [node]=nodejs
    [npm]=npm
    [pgbouncer]=pgbouncer
    [prometheus-alertmanager]=prometheus-alertmanager
    [valgrind]=valgrind
    [wrk]=wrk
)
missing=()
PATH="$PATH:/usr/sbin"
for command in "${!package_of[@]}"; do
    command -v "$command" >/dev/null 2>&1 || missing+=("${package_of[$command]}")
done
[ -x /usr/lib/postgresql/15/bin/postgres ] || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
[ -e /usr/lib/nginx/modules/ngx_http_echo_module.so ] || missing+=(libnginx-mod-http-echo)

[ -d /usr/share/fonts/opentype/inter ] || missing+=(fonts-inter) # for the screenshots

tell_browser() {
    local browser=chromium-headless-shell
    command -v "$browser" >/dev/null 2>&1 && echo "browser for the console's tests: $("$browser" --version 2>/dev/null)"
    return 0
}

if [ ${#missing[@]} -eq 0 ]; then
    tell_browser
    exit 0
fi
if [ -e /etc/debian_version ] && [ "$(id -u)" = 0 ]; then
    echo "installing from Debian: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Servers are started by the tests, on ports of their own; the packages' services stay off.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "to run every test, install: ${missing[*]}"
    echo "(on Debian: sudo apt-get install ${missing[*]}); without them, tests use the embedded broker or are skipped"
    [ "${CI:-}" != true ] || exit 1
fi
tell_browser
