#!/usr/bin/env python3
"""Compares quest's tokenisers with the libraries that they follow.

    pip install tokenizers gguf sentencepiece
    tests/peers/tokenizer.py MODEL.gguf [--pattern smollm|gpt2|llama3] [--data DIR ...] [--golden FILE]
    tests/peers/tokenizer.py tokenizer.model [--data DIR ...] [--golden FILE]

A GGUF: the Hugging Face tokenizers library, built from its vocabulary and merges with that pre-tokeniser; quest reads
the tokenizer.json that the library writes, and with smollm the GGUF itself too. A SentencePiece model: the
sentencepiece library. Texts: title, content, and both joined, of every line of every *.json.gz under each DIR; then
every code point c that utf8proc's Unicode version assigns, as "a{c}a 1{c}1 {c}{c} {c}". Code points that it does not
assign are counted, and those that differ listed. Exit status 1 when a text or an assigned code point differs. Run
from the repository's root after make build/tools/tokenize.
"""
import argparse, ctypes, ctypes.util, gzip, itertools, json, os, pathlib, random, shutil, subprocess, sys, tempfile
import time

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {
    "smollm": lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "gpt2": lambda: ByteLevel(add_prefix_space=False),
    "llama3": lambda: Sequence([Split(Regex(LLAMA3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
}


class SentencePiece:
    """The sentencepiece library, as far as it is used here. It takes no control tokens from the text."""

    class Ids:
        def __init__(self, ids):
            self.ids = ids

    def __init__(self, path):
        import sentencepiece
        self.model = sentencepiece.SentencePieceProcessor(model_file=path)

    def encode(self, text, add_special_tokens=False):
        return self.Ids(self.model.encode(text))

    def encode_batch(self, texts, add_special_tokens=False):
        return [self.Ids(ids) for ids in self.model.encode(texts)]


def reference(path, pattern):
    fields = GGUFReader(path).fields
    array = lambda key: [fields[key].parts[i] for i in fields[key].data]
    texts = lambda key: [bytes(part).decode() for part in array(key)]
    tokens = texts("tokenizer.ggml.tokens")
    types = [int(part[0]) for part in array("tokenizer.ggml.token_type")]
    merges = [tuple(merge.split(" ")) for merge in texts("tokenizer.ggml.merges")]
    whole = pattern == "llama3"
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=whole))
    tokenizer.pre_tokenizer = PATTERNS[pattern]()
    added = [token for token, kind in zip(tokens, types) if kind in (3, 4)]  # control, user-defined
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return tokenizer


def ours(tool, model, texts):
    blob = b"".join(text.encode() + b"\0" for text in texts)
    out = subprocess.run([tool, model], input=blob, stdout=subprocess.PIPE, check=True).stdout
    lines = out.decode().split("\n")[:-1]
    assert len(lines) == len(texts), (len(lines), len(texts))
    ids = [[int(i) for i in line.split()] for line in lines]
    return [i[1:] for i in ids] if model.endswith("spm") else ids  # without BOS


def differences(tokenizer, tool, model, texts):
    theirs = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return [(t, a, b) for t, a, b in zip(texts, ours(tool, model, texts), theirs) if a != b]


def chunks(items, size):
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def texts_of(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            title, content = record.get("title") or "", record.get("content") or ""
            for text in (title, content, title + "\n" + content):
                if text and "\0" not in text:  # NUL separates texts on the way to our tool
                    yield text


def show(found, limit=10):
    for text, a, b in found[:limit]:
        print(f"  {text[:200]!r}\n    ours   {a[:40]}\n    theirs {b[:40]}")


def compare_data(tokenizer, tool, model, folders):
    bad = 0
    for path in sorted(p for f in folders for p in pathlib.Path(f).rglob("*.json.gz")):
        count = size = wrong = 0
        start = time.time()
        for chunk in chunks(texts_of(path), 20000):
            found = differences(tokenizer, tool, model, chunk)
            show(found)
            wrong += len(found)
            count += len(chunk)
            size += sum(len(t.encode()) for t in chunk)
        seconds = time.time() - start
        print(f"{path}: {count} texts, {size / 1e6:.1f} MB, {wrong} differ ({seconds:.0f} s)", flush=True)
        bad += wrong
    return bad


def compare_code_points(tokenizer, tool, model):
    utf8proc = ctypes.CDLL(ctypes.util.find_library("utf8proc"))
    utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p
    points = [c for c in range(1, 0x110000) if not 0xD800 <= c <= 0xDFFF]
    assigned = {c for c in points if utf8proc.utf8proc_category(c) != 0}
    wrong, later = [], []
    for chunk in chunks(points, 50000):
        texts = {f"a{chr(c)}a 1{chr(c)}1 {chr(c)}{chr(c)} {chr(c)}": c for c in chunk}
        for found in differences(tokenizer, tool, model, list(texts)):
            c = texts[found[0]]
            (wrong if c in assigned else later).append((c, found))
    version = utf8proc.utf8proc_unicode_version().decode()
    print(f"code points: {len(assigned)} assigned in Unicode {version} (utf8proc), {len(wrong)} differ; "
          f"{len(points) - len(assigned)} not assigned there, {len(later)} differ")
    show([found for _, found in wrong])
    ranges = []
    for c, _ in later:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    shown = (f"U+{a:04X}" + (f"-{b:04X}" if b > a else "") for a, b in ranges)
    print("  differing, not assigned there:", " ".join(shown) or "none")
    return len(wrong)


HAND = [
    "\n\n2", "\n\n 2", "a  b", "a   1", " 12 345", "it's we'll I'd I'VE they're 'tis 'S",
    "x=1.5e-3;y=\"z\"", "  ", " ", "\t\tif (x)\n\t{\n", "foo\r\nbar\r\n\r\n",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|><|im_end|>", "<|im_start|", "<<|im_end|>>",
    "<repo_name>x<reponame>", "Ångström café naïve", "e\u0301", "Straße ÄÖÜ", "日本語のテキスト", "한국어 텍스트",
    "Привет, мир!", "שלום עולם", "مرحبا ٣٤٥", "हिन्दी १२३", "½ ² Ⅷ ①②", "𝟘𝟙 𝓐𝓑", "👩‍👩‍👧‍👦 🏳️‍🌈",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f", "\u00a0\u00a0x", "\u200bzero\ufeffwidth", "a\u0004b\u0006c",
    "\U00100000 private", "http://example.org/a?b=1&c=%20", "C++20, C# & F#", "1,000,000.00 €",
    "don''t ''s", "'s't're", " 's", "\u2019s", "ſ'ſ", "snake_case CamelCase kebab-case", "....!!!???",
    "a" * 200, "ab" * 150, " " * 65, "\n" * 33, "=" * 80, "9" * 40, "\u0301\u0301",
]


def golden(tokenizer, path, folders, count):
    """ids, a tab, the text with control characters and backslashes as \\xHH."""
    files = [p for f in folders for p in sorted(pathlib.Path(f).rglob("tst.json.gz"))]
    yso = [p for p in files if "yso" in str(p)]  # CC0
    pool = [t for t in itertools.islice(texts_of(yso[0]), 30000) if len(t) < 300]
    pick = random.Random(1)
    texts = HAND + pick.sample(pool, 100 * (count > 100))
    while len(texts) < count:  # random characters of many scripts and classes
        blocks = [(0x20, 0x7E), (0x20, 0x40), (0xA0, 0x17F), (0x370, 0x52F), (0x900, 0xD7F), (0x2000, 0x24FF),
                  (0x3000, 0x30FF), (0x1F300, 0x1F6FF)]
        texts.append("".join(chr(pick.randint(*pick.choice(blocks))) for _ in range(pick.randint(1, 60))))
    plain = lambda c: c != "\\" and ord(c) >= 0x20 and ord(c) != 0x7F
    escape = lambda text: "".join(c if plain(c) else f"\\x{ord(c):02x}" for c in text)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            out.write(" ".join(map(str, ids)) + "\t" + escape(text) + "\n")
    print(f"{path}: {len(texts)} lines")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", nargs="*", default=["../shared/data/foldoc", "../shared/data/yso"])
    parser.add_argument("--pattern", default="smollm", choices=list(PATTERNS))
    parser.add_argument("--golden", help="write golden lines to this file and stop")
    parser.add_argument("--lines", type=int, default=200)
    options = parser.parse_args()
    spm = not options.model.endswith(".gguf")
    tokenizer = SentencePiece(options.model) if spm else reference(options.model, options.pattern)
    if options.golden:
        return golden(tokenizer, options.golden, options.data, options.lines)
    tool, bad = "build/tools/tokenize", 0
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "spm" if spm else "json")
        os.mkdir(made)
        if spm:
            shutil.copy(options.model, made + "/tokenizer.model")
        else:
            tokenizer.save(made + "/tokenizer.json")
        for model in [made] + [options.model] * (not spm and options.pattern == "smollm"):
            print(model, options.pattern if not spm else "")
            bad += compare_data(tokenizer, tool, model, options.data)
            bad += compare_code_points(tokenizer, tool, model)
    print("no difference" if bad == 0 else f"{bad} DIFFERENCES")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
