#!/usr/bin/env bash
# Installs those Debian packages of a list that are missing.
#
#   deploy/install-packages.sh [LIST]    default: apt-packages.txt beside this
#
# Needs root only where something is missing; takes a moment where nothing is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/progress.sh"
list=${1:-$here/apt-packages.txt}
case $list in -h | --help)
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit 0
  ;;
esac

command -v dpkg-query >/dev/null ||
  die "dpkg-query is missing: this needs Debian 12 (see $list for the packages)"
mapfile -t missing < <(comm -23 \
  <(grep -v '^ *\(#\|$\)' "$list" | sort -u) \
  <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' |
    awk '$1 == "installed" { print $2 }' | sort -u))
if [ ${#missing[@]} -eq 0 ]; then
  note "all $(grep -vc '^ *\(#\|$\)' "$list") packages are installed"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  die "these packages are missing, and only root can install them:
  apt-get install --no-install-recommends ${missing[*]}"
fi

log=$(mktemp -d)
trap 'stop_running; rm -rf "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export DEBIAN_FRONTEND=noninteractive
printf 'missing: %s\n' "${missing[*]}"
run_logged "reading the package lists" "$log/update" \
  apt-get update -o Acquire::Retries=3
run_logged "installing ${#missing[@]} packages" "$log/install" \
  apt-get install -y --no-install-recommends -o Dpkg::Use-Pty=0 \
  -o Acquire::Retries=3 "${missing[@]}"
