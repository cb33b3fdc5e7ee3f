# shellcheck shell=bash
# Sourced by the scripts that set things up: headings, long commands whose
# progress stays visible, and a clean end whatever happens.
#
# On a terminal a long command shows one line that changes in place; elsewhere
# a plain line now and then. What it printed is in its log, and the log's end
# is shown when it fails.

if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then
  VITRINE_TTY=1
else
  VITRINE_TTY=
fi
if [ -n "$VITRINE_TTY" ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' RED='' PLAIN=''
fi

heading() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '%s%s%s\n' "$DIM" "$*" "$PLAIN"; }
complain() { printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2; }
die() {
  complain "$@"
  exit 1
}

# 75 -> "1:15"
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

RUNNING_PID=

# Ends the long command that is running, with all its children.
stop_running() {
  [ -n "$RUNNING_PID" ] || return 0
  kill -TERM -- "-$RUNNING_PID" 2>/dev/null || true
  wait "$RUNNING_PID" 2>/dev/null || true
  RUNNING_PID=
}

# run_logged LABEL LOG COMMAND...: the command's exit status is its own.
run_logged() {
  local label=$1 log=$2 start=$SECONDS last=0 line columns status=0
  shift 2
  mkdir -p "$(dirname "$log")"
  : >"$log"
  set -m # a process group of its own, so that it can be ended as a whole
  "$@" >"$log" 2>&1 </dev/null &
  RUNNING_PID=$!
  set +m
  [ -n "$VITRINE_TTY" ] || printf '%s ...\n' "$label"
  while kill -0 "$RUNNING_PID" 2>/dev/null; do
    if [ -n "$VITRINE_TTY" ]; then
      line=$(last_line "$log")
      columns=$(tput cols 2>/dev/null || echo 80)
      line="$label $(minutes $((SECONDS - start)))  $line"
      printf '\r\e[K%s' "${line:0:$((columns - 1))}"
    elif [ $((SECONDS - start - last)) -ge 15 ]; then
      last=$((SECONDS - start))
      line=$(last_line "$log")
      printf '  %s  %s\n' "$(minutes "$last")" "${line:0:110}"
    fi
    sleep 0.3
  done
  wait "$RUNNING_PID" || status=$?
  RUNNING_PID=
  [ -z "$VITRINE_TTY" ] || printf '\r\e[K'
  if [ "$status" -eq 0 ]; then
    printf '%s: done in %s\n' "$label" "$(minutes $((SECONDS - start)))"
    return 0
  fi
  complain "$label failed with exit status $status; the end of $log:"
  tail -n 30 "$log" | sed 's/^/  | /' >&2
  return "$status"
}

# The last line that says something; ninja's and apt's carriage returns count
# as line ends.
last_line() {
  tail -c 4000 "$1" | tr '\r' '\n' | tr -cd '[:print:]\n' |
    awk 'NF { line = $0 } END { print line }'
}
