// The same measurement of the Rust library `tokenizers`, on one thread:
//
//   npm install @anush008/tokenizers        (in a scratch folder)
//   NODE_PATH=<scratch>/node_modules node tokenizer_peer.mjs \
//       --vocab FOLDER/vocab.txt --texts FILE.jsonl [--field title]
//       [--max-tokens 512] [--rounds 5] [--cased]
//
// Batches keep the crossing from JavaScript out of the figure; only the
// library's own work, on one thread, is inside.

import fs from 'node:fs';
import {createRequire} from 'node:module';
import {parseArgs} from 'node:util';

process.env.RAYON_NUM_THREADS = '1';
process.env.TOKENIZERS_PARALLELISM = 'false';
const tokenizers = createRequire(import.meta.url)('@anush008/tokenizers');

const {values: options} = parseArgs({
  options: {
    vocab: {type: 'string'},
    texts: {type: 'string'},
    field: {type: 'string', default: 'title'},
    'max-tokens': {type: 'string', default: '512'},
    rounds: {type: 'string', default: '5'},
    cased: {type: 'boolean', default: false},
  },
});

const lines = (path) => fs.readFileSync(path, 'utf8').split('\n').slice(0, -1);
const vocab = {};
lines(options.vocab).forEach((piece, id) => { vocab[piece] = id; });
const texts = lines(options.texts).map((line) => {
  const json = JSON.parse(line);
  return typeof json === 'string' ? json : json[options.field];
});
const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);

const tokenizer = new tokenizers.Tokenizer(tokenizers.WordPiece.init(
    vocab, {unkToken: '[UNK]', maxInputCharsPerWord: 100}));
tokenizer.setNormalizer(tokenizers.bertNormalizer({
  cleanText: true,
  handleChineseChars: true,
  stripAccents: !options.cased,
  lowercase: !options.cased,
}));
tokenizer.setPreTokenizer(tokenizers.bertPreTokenizer());
tokenizer.setTruncation(Number(options['max-tokens']));

let best = Infinity;
let tokens = 0;
for (let round = 0; round < Number(options.rounds); ++round) {
  tokens = 0;
  let seconds = 0;
  for (let i = 0; i < texts.length; i += 256) {
    const batch = texts.slice(i, i + 256);
    const start = process.hrtime.bigint();
    const encodings =
        await tokenizer.encodeBatch(batch, {addSpecialTokens: false});
    seconds += Number(process.hrtime.bigint() - start) / 1e9;
    for (const encoding of encodings) tokens += encoding.getLength();
  }
  best = Math.min(best, seconds);
}
console.log(JSON.stringify({
  tokenizer: 'tokenizers (Rust)',
  texts: texts.length,
  tokens,
  seconds: best,
  texts_per_s: texts.length / best,
  tokens_per_s: tokens / best,
  mb_per_s: bytes / best / 1e6,
}));
