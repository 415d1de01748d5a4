#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""test_agree.py TEST_VECTORS: damaged frames, which the decoder in C and the one in Python have to
judge alike, and to read alike where they are still good. Exit status 77: skipped."""
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

try:
    import vcbatch
    import vcvectors as v
    import vcwire
except ImportError as e:
    print(f"skipped: {e} (Debian: python3-zstandard, python3-cryptography)")
    sys.exit(77)

FRAMES = 500  # at once; test_vectors.c takes 512
ROUNDS = 4
WITH_TEXT = ("HELLO", "OPEN", "BLOCKS", "ANNOUNCE_BLOCKS", "STREAM_FAILED", "WORD_DONE", "NEVER_RAN", "ERROR")
BATCH = vcwire.BY_NAME["BATCH"].number


def damaged(rng, data):
    """The frame with one to three changes behind its header; its length is right again."""
    payload = bytearray(data[8:])
    end, kinds = min(len(payload), 400), 6
    if data[4] == BATCH and data[8 + 28]:
        # What a damaged zstd frame unpacks to is not for us to say. A delta's begins behind the runs.
        runs_length = int.from_bytes(payload[20:24], "little")
        end, kinds = 48 + (runs_length if data[8 + 28] in vcbatch.DELTAS else 0), 3
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(end)
        kind = rng.randrange(kinds)
        if kind <= 1:
            payload[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            payload[at] = rng.choice((0, 1, 2, 0x7f, 0x80, 0xff, rng.randrange(256)))
        elif kind == 3:
            del payload[at:at + rng.choice((1, 2, 8))]
        elif kind == 4:
            payload[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        else:
            payload[at:at] = payload[at:at + rng.randint(1, 12)]
        end = max(1, min(end, len(payload)))
        if not payload:
            break
    return len(payload).to_bytes(4, "little") + data[4:8] + bytes(payload)


def sealed(x, data):
    """A batch with the seal that it should have, so that what it stands for is compared too."""
    try:
        b = vcbatch.decode_batch(data[8:], v.BLOCKS, v.PAGE_SIZE, x["features"], v.base_page)
    except vcwire.Bad:
        return data  # a delta that does not fit its old pages
    return data[:8 + 32] + v.seal_of(b, x["before"]) + data[8 + 48:]


def mend_lengths(data):
    """A batch whose lengths follow its runs, so that damage to these is not seen by the sum alone."""
    payload = bytearray(data[8:])
    runs_length = int.from_bytes(payload[20:24], "little")
    try:
        runs = vcbatch.decode_runs(bytes(payload[48:48 + runs_length]), v.BLOCKS, v.PAGE_SIZE)
    except vcwire.Bad:
        return data
    total = sum(r.stream_bytes(v.BLOCKS, v.PAGE_SIZE) for r in runs)
    content = sum(r.count * (v.PAGE_SIZE if r.kind == vcbatch.DATA else 1) for r in runs
                  if r.kind in (vcbatch.DATA, vcbatch.OPAQUE))
    if total > vcbatch.MAX_STREAM or content > 6000:
        return data
    body = payload[48:48 + runs_length] + bytes(1 + i % 255 for i in range(content))
    payload[16:20] = total.to_bytes(4, "little")
    payload[24:28] = len(body).to_bytes(4, "little")
    payload[48:] = body
    return len(payload).to_bytes(4, "little") + data[4:8] + bytes(payload)


def one(rng, vectors):
    x, data = rng.choice(vectors)
    data = damaged(rng, data)
    if data[4] == BATCH and data[8 + 28:8 + 29] == b"\0" and rng.random() < 0.7:
        data = mend_lengths(data)
    judged = v.judge(data, x["sender"], x["phase"], x["before"], x["features"])
    if judged[0] == "bad SEAL seal":
        data = sealed(x, data)
        judged = v.judge(data, x["sender"], x["phase"], x["before"], x["features"])
    name = vcwire.BY_NUMBER[data[4]].name
    fields = judged[1] if judged[0] == "good" and name not in WITH_TEXT else []
    return x, data, judged[0], fields


def write(directory, frames):
    lines = v.context()
    for n, (x, data, verdict, fields) in enumerate(frames):
        (Path(directory) / f"{n}.bin").write_bytes(data)
        lines += [f"vector {n}", f"from {x['sender']}", f"phase {x['phase']}",
                  f"features {x['features']}"]
        lines += [f"before {x['before'].hex()}"] if x["before"] else []
        lines += [verdict, *("  " + f for f in fields)]
    (Path(directory) / "manifest").write_text("\n".join(lines) + "\n")


def main():
    seed = int(os.environ.get("VC_TEST_SEED") or time.time())
    print(f"seed: VC_TEST_SEED={seed}")
    rng = random.Random(seed)
    _, known = v.read_manifest((v.DIRECTORY / "manifest").read_text())
    vectors = [(x, (v.DIRECTORY / f"{x['name']}.bin").read_bytes()) for x in known
               if x["verdict"] == "good"]
    vectors = [(x, d) for x, d in vectors if 8 < len(d) < 4000 and not d[5]
               and not x["features"] & ~(vcbatch.FEATURE_DELTA | vcbatch.FEATURE_RECENT | vcbatch.FEATURE_SHIFTED)]
    vectors += [(x, d) for x, d in vectors if d[4] == BATCH] * 4  # there is most to say about them
    verdicts = {}
    for _ in range(ROUNDS):
        frames = [one(rng, vectors) for _ in range(FRAMES)]
        for f in frames:
            verdicts[f[2]] = verdicts.get(f[2], 0) + 1
        with tempfile.TemporaryDirectory() as directory:
            write(directory, frames)
            done = subprocess.run([sys.argv[1], directory], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(done.stdout)
            return 1
    print(", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items())))
    return 0 if verdicts.get("good", 0) > 100 else 1


if __name__ == "__main__":
    sys.exit(main())
