# What the sample shop's model is made with; to be sourced, $shop names the
# folder of the shop's files.
#
#   vitrine-trainer fit "${recipe[@]}" --model shop --out REGISTRY
# shellcheck shell=bash disable=SC2034

# Five heads on the starter, together. Twice through the rows is enough: it
# knows the words already.
recipe=(
  --from deploy/starter/model --recipe deploy/recipes/shop.toml
  --items "$shop/items.jsonl"
  --task relevance --data "$shop/relevance.jsonl"
  --task recommendation --data "$shop/users.jsonl"
  --task interest --data "$shop/interest.jsonl"
  --task classification --head category --data "$shop/categories.jsonl"
  --task classification --head anomaly --data "$shop/reviews.jsonl"
)
