# What the sample shop's model is made with; to be sourced, $shop names the
# folder of the shop's files.
#
#   vitrine-trainer init --vocab "$shop/vocab.txt" "${encoder[@]}" --out ENCODER
#   vitrine-trainer fit --from ENCODER "${recipe[@]}" --model shop --out REGISTRY
# shellcheck shell=bash disable=SC2034

# One encoder from scratch, four heads on it. The label texts are short and
# teach the encoder the shop's words quickly, which the others then build on.
recipe=(
  --items "$shop/items.jsonl"
  --task relevance --data "$shop/relevance.jsonl"
  --task recommendation --data "$shop/users.jsonl"
  --task interest --data "$shop/interest.jsonl"
  --task classification --head category --data "$shop/categories.jsonl"
  # The sample shop's descriptions say nothing that titles do not.
  --max-description-tokens -1
  --pooling mean --learning-rate 1e-3 --dropout 0 --epochs 6 --seed 1
)
encoder=(--layers 2 --hidden 128 --heads 2 --seed 1)
