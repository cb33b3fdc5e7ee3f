#!/usr/bin/env bash
# How good fine-tuned models are on real data, beside what a team has without
# them: for each task a classical method, the same encoder from random weights,
# from the starter (deploy/starter/model), and from the starter after
# pre-training on the task's own texts without labels.
#
#   tests/bench/quality.sh DATA [TEST] [OPTION...]
#
#   DATA           a folder of NAME.jsonl.gz; a fifth is held out, by a hash of
#                  query, user, subject, source or text
#   TEST           a folder of files of the same names: those rows are scored
#                  instead, and all of DATA is learnt from
#   --fast         a tenth of the rows and few steps: whether it works, in
#                  minutes, not how well
#   --only TASK    (repeatable) home_depot, crowdflower, beauty, office,
#                  industrial, next_category, instacart, clothing,
#                  chinese_category, chinese_polarity, comment_spam,
#                  deceptive_opinion, generated_reviews, out_of_domain
#   --jobs N       runs at a time, each on one thread (default: as many as cores)
#   --few-labels   instead: 1%, 10% and all of the labels of three tasks
#   --plot FILE    of few labels, as SVG
#   --markdown FILE   the table as in docs/quality.md
#   --out FOLDER   what is kept (default build/quality); the same command goes
#                  on from it, and a recipe that was changed is run again
#
# A line a metric and a line of JSON a task on standard output, progress on
# standard error. Needs build/release and Debian's python3-sklearn (and
# python3-matplotlib for --plot), which it installs where they are missing. The
# recipes are in deploy/recipes, the figures in docs/quality.md.
set -euo pipefail
case ${1:-} in
'' | -h | --help)
  sed -n '2,32s/^# \{0,1\}//p' "$0"
  [ -n "${1:-}" ]
  exit
  ;;
esac
here=$(dirname "$(realpath "$0")")
"$here/../../deploy/install-packages.sh" "$here/quality/packages.txt" >&2
exec /usr/bin/python3 "$here/quality/quality.py" "$@"
