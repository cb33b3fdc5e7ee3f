// Times ONNX Runtime on token sequences as engine_bench does ours: sorted by
// length, in batches of --batch, each padded to its longest; or one at a time
// with --single. Prints one JSON line with engine_bench's fields.
//
//   cd SCRATCH
//   ONNXRUNTIME_NODE_INSTALL_CUDA=skip npm install onnxruntime-node
//   NODE_PATH=SCRATCH/node_modules node tests/bench/ort_bench.mjs \
//       --model MODEL.onnx --ids IDS.jsonl

import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    model: { type: 'string' },
    ids: { type: 'string' },
    batch: { type: 'string', default: '32' },
    threads: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '3' },
    'warmup-rounds': { type: 'string', default: '0' },
    single: { type: 'boolean', default: false },
    logits: { type: 'string' },
  },
});
const batch = options.single ? 1 : Number(options.batch);
const threads = Number(options.threads);

// A line of /proc/self/status in MiB.
function statusMib(field) {
  const status = readFileSync('/proc/self/status', 'utf8');
  const kib = status.match(new RegExp(`^${field}:\\s+(\\d+)`, 'm'))?.[1] ?? 0;
  return Math.round(kib / 102.4) / 10;
}

const sequences = readFileSync(options.ids, 'utf8').trim().split('\n')
    .map((line, index) => ({ ...JSON.parse(line), index }));
if (!options.single) {
  sequences.sort((a, b) => a.ids.length - b.ids.length);
}
const ort = createRequire(import.meta.url)('onnxruntime-node');
const startMib = statusMib('VmRSS');
const session = await ort.InferenceSession.create(options.model, {
  intraOpNumThreads: threads,
  interOpNumThreads: 1,
  graphOptimizationLevel: 'all',
});
const loadedMib = statusMib('VmRSS');

const calls = [];
for (let i = 0; i < sequences.length; i += batch) {
  const part = sequences.slice(i, i + batch);
  const length = Math.max(...part.map((s) => s.ids.length));
  const tensor = (value) => {
    const data = new BigInt64Array(part.length * length);
    part.forEach((s, row) => {
      for (let t = 0; t < s.ids.length; ++t) {
        data[row * length + t] = BigInt(value(s, t));
      }
    });
    return new ort.Tensor('int64', data, [part.length, length]);
  };
  calls.push({ part, feeds: {
    input_ids: tensor((s, t) => s.ids[t]),
    attention_mask: tensor(() => 1),
    token_type_ids: tensor((s, t) => s.type_ids?.[t] ?? 0),
  } });
}

for (const { feeds } of calls.slice(0, 3)) await session.run(feeds);
for (let round = 0; round < Number(options['warmup-rounds']); ++round) {
  for (const { feeds } of calls) await session.run(feeds);
}
const rounds = [], each = [], logits = [];
for (let round = 0; round < Number(options.rounds); ++round) {
  const start = performance.now();
  for (const { part, feeds } of calls) {
    const call = performance.now();
    const outputs = await session.run(feeds);
    each.push(performance.now() - call);
    if (round > 0) continue;
    const width = outputs.logits.dims[1];
    part.forEach((s, row) => {
      logits[s.index] = [...outputs.logits.data.slice(row * width,
                                                      (row + 1) * width)];
    });
  }
  rounds.push((performance.now() - start) / 1e3);
}
if (options.logits) {
  writeFileSync(options.logits, logits
      .map((row) => JSON.stringify({ logits: row }) + '\n').join(''));
}

rounds.sort((a, b) => a - b);
each.sort((a, b) => a - b);
const seconds = rounds[rounds.length >> 1];
const tokens = sequences.reduce((sum, s) => sum + s.ids.length, 0);
const rounded = (value, digits) => Number(value.toFixed(digits));
const quantile = (p) =>
    each[Math.min(each.length - 1, Math.floor(p * each.length))];
console.log(JSON.stringify({
  engine: `onnxruntime ${ort.env.versions.node}`,
  model: options.model,
  sequences: sequences.length,
  tokens,
  batch,
  threads,
  seconds: rounded(seconds, 4),
  sequences_per_s: rounded(sequences.length / seconds, 1),
  tokens_per_s: Math.round(tokens / seconds),
  p50_ms: rounded(quantile(0.5), 3),
  p99_ms: rounded(quantile(0.99), 3),
  start_mib: startMib,
  loaded_mib: loadedMib,
  peak_mib: statusMib('VmHWM'),
}));
