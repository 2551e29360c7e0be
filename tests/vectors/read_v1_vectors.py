"""Checks the committed vectors with the independent reader: golden objects open, negative ones fail with the class they name."""

import hashlib
import json
import os

import read_v1 as r
from read_v1_store import open_store


def volume(w):
    keks = {i + 1: bytes.fromhex(k) for i, k in enumerate(w["keks"])}
    return r.Volume(bytes.fromhex(w["vrk"]), bytes.fromhex(w["volume_id"]), w["suite"], w["chunk_log2"], w["seg_log2"], keks)


def expected(e):
    return {k: v if k == "generation" else bytes.fromhex(v) for k, v in e.items()}


def read_all(v, expect, data):
    return b"".join(r.read_object(v, r.open_object(v, expect, data), data))


def apply(base, patch):
    if isinstance(patch, dict):
        return base[: patch["front"]] + bytes.fromhex(patch["insert"]) + base[len(base) - patch["back"] :]
    out = bytearray(base)
    for at, run in patch:
        run = bytes.fromhex(run)
        out[at : at + len(run)] = run
    return bytes(out)


def golden(load):
    """Objects of which all bytes are here must open to the plaintext; the others are covered by whole buckets."""
    for g in json.loads(load("golden.json")):
        v = volume(g["world"])
        n = -(-g["size"] // v.S)
        stored = sum(v.segment_stored(min(v.S, g["size"] - k * v.S)) for k in range(n) if k not in g["holes"])
        yield f"length of {g['label']}", 128 + stored + r.blob_len(384 + 80 * n) + 512 == g["object_len"]
        if g["file"]:
            data = load(g["file"])
            yield f"bytes of {g['label']}", hashlib.sha256(data).hexdigest() == g["object_sha256"]
            plain = read_all(v, expected(g["expect"]), data)
            yield g["label"], hashlib.sha256(plain).hexdigest() == g["plain_sha256"] and len(plain) == g["size"]


def negative(load):
    n = json.loads(load("negative.json"))
    v, bases = volume(n["world"]), {k: load(f) for k, f in n["bases"].items()}
    root = [bytes.fromhex(n["root"][k]) for k in ("dir_id", "dir_key")]

    def read(kind, data, case):
        if kind == "object":
            expect = expected(n["expect"])
            if "trailer_hash" in case:
                expect["trailer_hash"] = bytes.fromhex(case["trailer_hash"])
            read_all(v, expect, data)
        elif kind == "config":
            r.unlock(r.parse_config(data), 1, n["passphrase"].encode())
        elif kind == "index":
            r.open_index(v, *root, 0, 0, data)
        else:
            r.parse_payload(data)

    for kind, base in bases.items():
        read(kind, base, {})
        yield f"base {kind}", True
    for case in n["cases"]:
        found = "accepted"
        try:
            read(case["kind"], apply(bases[case["kind"]], case["patch"]), case)
        except r.Bad as bad:
            found = bad.cls
        yield f"{case['name']}: expected {case['class']}, found {found}", found == case["class"]


def buckets(load, dir_):
    passphrase = json.loads(load("negative.json"))["passphrase"].encode()
    for name, tree in json.loads(load("trees.json")).items():
        store = open_store(os.path.join(dir_, name))
        config = r.parse_config(store.get(".smpfs/volume"))
        walk = r.Walk(r.unlock(config, 1, passphrase), store, None)
        walk.run(config["root"])
        yield f"{name} without failures", not walk.failures
        yield f"{name} tree", {b"/".join(p).hex(): d for p, _, d, _ in walk.files} == tree
        try:
            r.unlock(config, 1, b"wrong")
            yield f"{name} wrong passphrase", False
        except r.Locked:
            yield f"{name} wrong passphrase", True


def log(load):
    """Section 8: the golden log holds three records, one behind a burned number."""
    data, v = load("log.smp"), volume(json.loads(load("negative.json"))["world"])
    f = r.Fields(data, "log")
    assert f.take(8) == b"SMPLOG\x01\n" and f.u(2) == 1
    kind, volume_id, log_id, wrapped = f.u(2), f.take(16), f.take(16), f.take(104)
    f.zeros(256 - 148)
    context = b"smpfs/v1/log\0" + kind.to_bytes(2, "big") + volume_id + log_id
    key = r.open_blob("log", v.key("local-log"), context, wrapped)
    found, seq = [], 0
    while f.left():
        offset = f.at
        head = f.take(8)
        sealed = f.take(int.from_bytes(head[:4], "big") + 16)
        for number in range(seq, seq + 8):
            aad = head + offset.to_bytes(8, "big") + log_id
            plain = r.open_aead(1, key, bytes(4) + number.to_bytes(8, "big"), sealed, aad)
            if plain is not None:
                found.append((number, head[4], plain))
                seq = number + 1
                break
        else:
            break
    yield "log", found == [(0, 7, b"first"), (1, 7, b""), (3, 7, b"after a burned number")] and volume_id == v.id


def lease(load):
    """Section 7.3: the golden lease says what lease.json says, and with any byte changed nothing."""
    want = json.loads(load("lease.json"))
    v, data = volume(want.pop("world")), load("lease.smp")
    found = r.open_lease(v, data)
    for key in ("holder", "mount"):
        found[key] = found[key].hex()
    yield "lease", {k: list(x) if isinstance(x, tuple) else x for k, x in found.items()} == want
    for at in range(len(data)):
        bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        cls = "accepted"
        try:
            r.open_lease(v, bad)
        except r.Bad as e:
            cls = e.cls
        yield f"lease with byte {at} changed: {cls}", cls == "lease"


def vectors(dir_):
    def load(name):
        with open(os.path.join(dir_, name), "rb") as f:
            return f.read()

    right, wrong = 0, 0
    for checks in (golden(load), negative(load), buckets(load, dir_), log(load), lease(load)):
        for what, good in checks:
            right, wrong = right + good, wrong + (not good)
            if not good:
                print(f"WRONG {what}")
    print(f"{right} right, {wrong} wrong")
    return 1 if wrong else 0
