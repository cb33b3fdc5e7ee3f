#!/usr/bin/env python3
"""Makes the golden files of the tokenizer tests, in tokenizer/ beside this.

    make_tokenizer_goldens.py --node-modules FOLDER [--train]

FOLDER is a node_modules with the npm package @anush008/tokenizers 0.6.0 (the
Rust library `tokenizers` 0.22). The tests need neither it nor this script:
what it writes is committed, and comes out the same byte for byte:

  strings.jsonl      hard texts, a JSON string a line
  vocab.txt          a WordPiece vocabulary made of their characters and
                     frequent parts, with every eleventh character left out
  wordpiece_<mode>.jsonl
                     a list of ids a line, by the Rust library. Modes: uncased;
                     cased; lower (lower-case but keep accents)
  xlmr.model, albert.model
                     two small SentencePiece unigram models, trained on the
                     sentences below (--train does so again): xlmr with
                     nmt_nfkc and no byte fallback, albert with byte fallback
                     and no normalisation
  sentencepiece_<model>.jsonl
                     ids by python3-sentencepiece, in the encoder's numbering;
                     null for texts of more than 100 bytes

The texts use code points that Unicode had in version 3.2 with the category
that they have today, non-characters, and the newer ones written out below, so
that goldens do not depend on whose Unicode tables are newer.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import tempfile
import unicodedata

import sentencepiece

HERE = pathlib.Path(__file__).resolve().parent / "tokenizer"
SEED = 20240229

SENTENCES = """
The quick brown fox jumps over the lazy dog, doesn't it?
Two-seater velvet sofa with solid oak legs, grey (180 x 85 x 78 cm)
Stainless-steel water bottle 750ml — keeps drinks cold for 24 hours!
USB-C to HDMI adapter, 4K@60Hz, supports HDR10+ & Dolby Vision™
Men's waterproof hiking boots, size 10½, brown/black; 20% off
Kids' bicycle 16" with training wheels #1 best-seller <new> {2024} ~$149.99
naïve café résumé coöperate façade Zoë über smörgåsbord jalapeño
Crème brûlée à la carte, déjà vu, garçon, œuvre, l'été où j'ai vu ça
Größe: 42 Straße Fußgängerüberführung ÄÖÜ äöüß Weißwurst
El niño comió piñas en la montaña; ¿dónde está? ¡Qué día!
São Paulo: ação, coração, pão-de-ló, avó e avô
Příliš žluťoučký kůň úpěl ďábelské ódy
Zażółć gęślą jaźń, Łódź, ćma, źdźbło
Árvíztűrő tükörfúrógép, hosszú ő és ű
Þetta er íslenska: æðislegt, örn, ýsa, Ðorri
Blåbærgrød og rød fløde på Ærø, Ångström
Iğdır'da ışık, İstanbul, ıslak, ŞIK GÖMLEK, çığ
Tiếng Việt: Đường phố Hà Nội, phở bò tái, ưu đãi mỗi ngày
Съешь же ещё этих мягких французских булок, да выпей чаю
Диван-кровать угловой, серый, 240×160 см — скидка 30 %
Українська: їжак, ґанок, єдність, м'який стілець
Ѓорѓи, Џем, љубав, њива, ћирилица, ђак
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· ΟΔΟΣ ΣΟΦΟΣ Όδυσσεύς
Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν ᾳ ᾼ ῳ
שלום עולם: דָּג סַקְרָן שָׁט בְּיָם מְאֻכְזָב
مرحبا بالعالم، كَتَبَ الطَّالِبُ؟ أريكة جلدية ٣ مقاعد
یک صندلی راحتی می‌خواهم؛ قیمت ۲۵۰٬۰۰۰ تومان
اردو میں لکھائی: کرسی، میز، الماری
हिन्दी में कुर्सी और मेज़ ख़रीदें, क्षत्रिय ज्ञान श्री १२३
বাংলা ভাষায় সোফা কিনুন, ক্ষুদ্র ড়ঢ়য়
தமிழ் நாட்டில் நாற்காலி கொள்முதல் ௧௨௩
తెలుగు కుర్చీ ధర తగ్గింపు
ಕನ್ನಡ ಕುರ್ಚಿ ಮೇಜು
മലയാളം കസേര മേശ
ગુજરાતી ખુરશી ટેબલ ਪੰਜਾਬੀ ਕੁਰਸੀ
සිංහල පුටුව මේසය
เก้าอี้ไม้สัก โต๊ะทำงาน ราคาถูก น้ำผึ้ง
ພາສາລາວ ຕັ່ງນັ່ງ ໂຕະ
ខ្មែរ កៅអី តុ
မြန်မာစာ ကုလားထိုင်
བོད་ཡིག རྐུབ་སྟེགས།
ქართული სკამი მაგიდა, იყიდება
Հայերեն աթոռ և սեղան, գինը՝ 5000 ֏
አማርኛ ወንበር ጠረጴዛ።
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ꮳꮃꭹ
沙发床 双人 灰色 可折叠,限时优惠!
請問這張桌子多少錢?「兩千元」。
ソファーベッド 2人掛け グレー ガギグゲゴ パピプペポ
ハーフサイズ ガギグ ﾊﾝｶｸ ｶﾞｷﾞｸﾞ 〜～・「」
ひらがなで書いたいすとつくえ、がぎぐげご
한국어 소파 침대 2인용 회색 — 무료 배송!
각 낱말 뷁 쀍 궳 힣 가 나 다라마
ᄒᆞᆫ글 훈민정음 〮말〯ᄊᆞᆷ
Mixed 中文 and English混在text，全角ＡＢＣ１２３！
emoji 😀😃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️‍🔥 ☕️ 1️⃣ #️⃣ ©️ ™
ℌ𝔢𝔩𝔩𝔬 𝓦𝓸𝓻𝓵𝓭 𝟙𝟚𝟛 ⓐⓑⓒ ㎏ ㎡ ﬁ ﬂ ﷺ № ½ ² Å Ω K
a*b+c=d^2 |x| <y> \\n `code` ~tilde~ $5 €10 £3 ¥700 ₹99 ₿1
https://example.com/p?id=42&ref=a_b#top user@example.org +1-800-555-0199
[CLS] [SEP] [PAD] [UNK] [MASK] [unused1] ##ing <s> </s> <pad> <mask> ▁low
“curly” ‘quotes’ «guillemets» „tief“ … – — ― ‐ ‑ · • † ‡ § ¶ ′ ″
""".strip("\n").split("\n")

# Characters newer than Unicode 3.2 that all parties know.
NEWER = list("ẞỀΆꙀꙁꭰⰀⰰⴀꞐꟐ𐐀𐐨𞤀𞤢🦄🥑🪑🫠🛋🧸𠮷𪚥𝐀☃₽₺ᏸ")

# Bases and marks for clusters, ordered and out of order.
BASES = "aeinouyAEINOUYgkszåêơăЕИиιΑωאشकกあ각"
MARKS = "\u0300\u0301\u0302\u0303\u0304\u0307\u0308\u030a\u0323\u0327\u0328" \
        "\u0331\u0345\u05b0\u05bc\u064b\u0651\u093c\u094d\u0e38\u0e48\u3099" \
        "\u302a\u302e\u302f\U0001d165\U0001d16d\u20d0\u20dd"

SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2001" \
         "\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b" \
         "\u200c\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇫🇷🇮🇹", "❤️‍🔥", "☕️", "1️⃣", "#️⃣",
         "👨🏿‍🚀", "🧑‍🤝‍🧑", "🏴\U000e0067\U000e0062\U000e0073\U000e0063"
         "\U000e0074\U000e007f", "🦄", "🪑", "©️", "‼️", "㊗️", "🀄", "♂️"]


def stable(c):
    """Whether all Unicode tables since 2002 agree on code point c."""
    old, new = unicodedata.ucd_3_2_0.category(chr(c)), unicodedata.category(chr(c))
    if new in ("Cs", "Cn"):
        return False
    if old != new:
        return False
    return (unicodedata.ucd_3_2_0.normalize("NFD", chr(c)) ==
            unicodedata.normalize("NFD", chr(c)))


def all_strings():
    rng = random.Random(SEED)
    out = ["", " ", "\n", "\0", "a", "A", ".", "中", "é", "e\u0301", "\u0301"]
    out += SENTENCES
    for sentence in SENTENCES:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            out.append(unicodedata.normalize(form, sentence))
        # Upper-casing grows ß and ligatures; the old tables know them all.
        out.append(sentence.upper())
        out.append(sentence.swapcase())

    # Rows of code points, each between letters and each alone.
    points = list(range(0x0, 0x250)) + list(range(0x2000, 0x2070))
    points += list(range(0x3000, 0x3040)) + list(range(0xFE00, 0xFE70))
    points += list(range(0xFF00, 0x10000))
    points = [c for c in points if c < 0x80 or stable(c)]
    for i in range(0, len(points), 8):
        row = points[i:i + 8]
        out.append(" ".join("x%sy" % chr(c) for c in row))
        out.append("".join(chr(c) for c in row))
    assigned = [c for c in range(0x250, 0x30000) if stable(c)]
    letters = [c for c in assigned if not 0x3400 <= c <= 0x9FFF
               and not 0xAC00 <= c <= 0xD7A3 and not 0x20000 <= c <= 0x2A6DF
               and not 0xA000 <= c <= 0xA4FF and not 0xE000 <= c <= 0xF8FF]
    for i in range(0, len(letters), 16):
        out.append(" ".join("n%s%s" % (chr(c), "e" if c % 2 else "")
                            for c in letters[i:i + 16]))
    for _ in range(40):
        out.append("".join(chr(rng.choice(assigned)) for _ in range(12)))

    # What is in no script: private use, non-characters, the ends of planes.
    for c in (0xE000, 0xF8FF, 0xF0000, 0x10FFFD, 0xFDD0, 0xFFFE, 0xFFFF,
              0x1FFFE, 0x10FFFE, 0x10FFFF, 0xFFFD, 0xFFFC, 0xFFF9, 0xE0001):
        out += ["a%sb" % chr(c), chr(c), "a %s b" % chr(c), chr(c) * 3 + "."]
    for c in NEWER:
        out += [c, "a%sb" % c, c.lower() + c.upper()]

    for c in SPACES:
        out += ["a%sb" % c, c + "lead", "trail" + c, c * 5, "x%s%s.y" % (c, c)]
    for _ in range(60):
        out.append("".join(rng.choice(SPACES + "ab,中é")
                           for _ in range(rng.randint(1, 24))))
    for c in range(0x20):
        out.append("con%strol%s%s" % (chr(c), chr(c), chr(31 - c)))
    out += ["null\0byte", "\0\0\0", "a\0", "\0a", "a \0 b", "a\0\0b",
            "a\x00\u0301", "e\x01\u0301\x7f", "\u200ba\u0301\u200b"]

    for _ in range(300):  # clusters of marks
        words = []
        for _ in range(rng.randint(1, 4)):
            words.append("".join(
                rng.choice(BASES) + "".join(
                    rng.choice(MARKS) for _ in range(rng.randint(0, 4)))
                for _ in range(rng.randint(1, 4))))
        out.append(" ".join(words))
    out += [m + "a" + m for m in MARKS]

    for c in ("a", "Z", "0", "é", "e\u0301", "ß", "İ", "Ж", "א", "ก", "ๆ", "한",
              "ᄒ", "が", "か", "😀", "ﬁ", "\u0301", "\u200d", "₽", "क", "𝐀"):
        for n in (33, 34, 49, 50, 51, 98, 99, 100, 101, 102, 200):
            out.append(c * n)
    for n in (99, 100, 101):
        out += ["x" * n + " tail", "head " + "y" * n, "z" * n + "." + "z" * n,
                "中" + "w" * n + "文", "\xad" * 9 + "v" * n, "ab" * n,
                "sofa" * (n // 4) + "s" * (n % 4), "q" * n + "\u0301" * 5,
                "é" * (n - 1) + "e\u0301", "-" * n, "中" * n, "u\0" * n]

    for _ in range(80):
        out.append("".join(rng.choice(EMOJI + [" ", "a", ","])
                           for _ in range(rng.randint(1, 10))))
    words = sorted({w for s in SENTENCES for w in s.split()})
    for _ in range(500):  # words of all scripts, cut, glued and re-cased
        parts = []
        for _ in range(rng.randint(1, 12)):
            w = rng.choice(words)
            kind = rng.randint(0, 7)
            if kind == 0:
                w = w.upper()
            elif kind == 1:
                w = w[:rng.randint(1, len(w))]
            elif kind == 2:
                w = unicodedata.normalize("NFD", w)
            elif kind == 3:
                w = w + rng.choice(words)
            elif kind == 4:
                w = rng.choice("([{\"'“<") + w + rng.choice(")]}\"'”>,.;:!?…")
            parts.append(w)
            parts.append(rng.choice([" ", " ", " ", "  ", "\t", "-", "\u3000"]))
        out.append("".join(parts))
    unique = list(dict.fromkeys(out))
    for text in unique:
        text.encode("utf-8")  # no surrogates
    return unique


def vocabulary(strings):
    forms = collections.Counter()
    for text in strings:
        for form in (text, text.lower(), unicodedata.normalize("NFD", text),
                     unicodedata.normalize("NFD", text).lower()):
            forms.update(w for w in form.split() if len(w) < 40)
    chars = sorted({c for w in forms for c in w if c.isprintable()})
    grams = collections.Counter()
    for word, count in forms.items():
        if not word.isprintable():
            continue
        for size in range(2, 7):
            for i in range(len(word) - size + 1):
                grams[("" if i == 0 else "##") + word[i:i + size]] += count
    frequent = sorted(grams.items(), key=lambda x: (-x[1] * len(x[0]), x[0]))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kept = [c for i, c in enumerate(chars) if c.isascii() or i % 11 != 7]
    pieces += kept + ["##" + c for c in kept if not c.isascii() or c.isalnum()]
    pieces += [g for g, _ in frequent[:4000]]
    pieces += ["a" * 100, "a" * 101, "##" + "a" * 60, "sofa" * 25]
    return list(dict.fromkeys(pieces))


RUST = """
const fs = require('fs');
const t = require(process.argv[2] + '/@anush008/tokenizers');
const here = process.argv[3];
const vocab = {};
fs.readFileSync(here + '/vocab.txt', 'utf8').split('\\n').slice(0, -1)
    .forEach((piece, id) => { vocab[piece] = id; });
const strings = fs.readFileSync(here + '/strings.jsonl', 'utf8').split('\\n')
    .slice(0, -1).map(line => JSON.parse(line));
(async () => {
  for (const [mode, lowercase, stripAccents] of [
      ['uncased', true, true], ['cased', false, false],
      ['lower', true, false]]) {
    const tokenizer = new t.Tokenizer(t.WordPiece.init(vocab,
        {unkToken: '[UNK]', maxInputCharsPerWord: 100}));
    tokenizer.setNormalizer(t.bertNormalizer(
        {cleanText: true, handleChineseChars: true, stripAccents, lowercase}));
    tokenizer.setPreTokenizer(t.bertPreTokenizer());
    let out = '';
    for (const text of strings) {
      const encoding = await tokenizer.encode(text, null,
                                              {addSpecialTokens: false});
      out += JSON.stringify(Array.from(encoding.getIds())) + '\\n';
    }
    fs.writeFileSync(here + '/wordpiece_' + mode + '.jsonl', out);
  }
})();
"""


def train(strings):
    with tempfile.TemporaryDirectory() as folder:
        # The model keeps the names that it was made from: relative ones.
        os.chdir(folder)
        text = pathlib.Path("text.txt")
        rng = random.Random(SEED)
        words = [w for s in SENTENCES for w in s.split()]
        lines = SENTENCES * 4 + [
            " ".join(rng.choice(words) for _ in range(12)) for _ in range(600)]
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        common = dict(input="text.txt", model_type="unigram", num_threads=1,
                      hard_vocab_limit=False, character_coverage=0.98,
                      minloglevel=2)
        sentencepiece.SentencePieceTrainer.Train(
            model_prefix="xlmr", vocab_size=1200,
            normalization_rule_name="nmt_nfkc", **common)
        sentencepiece.SentencePieceTrainer.Train(
            model_prefix="albert", vocab_size=1300,
            normalization_rule_name="identity", byte_fallback=True, pad_id=0,
            unk_id=1, bos_id=-1, eos_id=-1,
            control_symbols="[CLS],[SEP],[MASK]", **common)
        for name in ("xlmr", "albert"):
            model = pathlib.Path(name + ".model").read_bytes()
            (HERE / (name + ".model")).write_bytes(model)
        os.chdir(HERE)  # out of the folder that is about to go


def write_lines(name, rows):
    text = "".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) +
                   "\n" for r in rows)
    (HERE / name).write_text(text, encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--node-modules", required=True)
    parser.add_argument("--train", action="store_true")
    args = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    strings = all_strings()
    write_lines("strings.jsonl", strings)
    (HERE / "vocab.txt").write_text(
        "".join(p + "\n" for p in vocabulary(strings)), encoding="utf-8",
        newline="\n")
    with tempfile.NamedTemporaryFile("w", suffix=".cjs") as script:
        script.write(RUST)
        script.flush()
        subprocess.run(["node", script.name,
                        str(pathlib.Path(args.node_modules).resolve()),
                        str(HERE)], check=True)
    if args.train or not (HERE / "xlmr.model").exists():
        train(strings)
    for name in ("xlmr", "albert"):
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(HERE / (name + ".model")))
        rows = [model.encode(s) if len(s.encode("utf-8")) <= 100 else None
                for s in strings]
        if name == "xlmr":  # fairseq's numbering
            rows = [row and [3 if i == 0 else i + 1 for i in row]
                    for row in rows]
        write_lines(f"sentencepiece_{name}.jsonl", rows)
    print(len(strings), "strings")


if __name__ == "__main__":
    main()
